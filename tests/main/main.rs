//! One binary for all integration tests: it links once.

mod crash;
mod daemon;
mod fixtures;
mod foreign_runner;
mod recorded;
mod support;
mod tidy;
