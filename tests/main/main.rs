//! One binary for all integration tests: it links once.

mod crash;
mod daemon;
mod embedded;
mod fixtures;
mod foreign_runner;
mod recorded;
mod sabotage;
#[cfg(not(feature = "sabotage"))]
mod said;
mod space;
mod step;
mod support;
mod tidy;
