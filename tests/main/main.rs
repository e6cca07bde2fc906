//! One binary for all integration tests: it links once.

mod crash;
mod daemon;
mod foreign_runner;
mod recorded;
mod step;
mod support;
mod tidy;
