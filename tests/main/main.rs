//! One binary for all integration tests: it links once.

mod crash;
mod daemon;
mod foreign_runner;
mod recorded;
mod space;
mod support;
mod tidy;
