//! The command line: one file for each family of commands.
//!
//! Invariant: decides nothing; it parses, calls, prints, and maps errors to exit codes and hints.

pub mod args;
pub mod chat;
pub mod demo;
pub mod doctor;
pub mod error;
pub mod export;
pub mod fixture;
pub mod fork;
pub mod given;
pub mod image;
pub mod init;
pub mod journal;
pub mod man;
pub mod operate;
pub mod readiness;
pub mod replay;
pub mod run;
pub mod service;
pub mod step;
pub mod table;
pub mod upgrade;
