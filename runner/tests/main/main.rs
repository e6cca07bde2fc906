//! The runner's binary against real session folders, driven by a host of a few lines.

mod any_host;
mod session;
mod turns;
