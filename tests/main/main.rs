//! One binary for all integration tests: it links once.

mod asking;
mod compat;
mod crash;
mod daemon;
mod docker;
mod docker_engine;
mod docker_inside;
mod durable;
mod embedded;
mod first_run;
mod fixtures;
mod foreign_runner;
mod image;
mod packaging;
mod recorded;
mod sabotage;
#[cfg(not(feature = "sabotage"))]
mod said;
mod space;
mod step;
mod support;
mod tidy;
