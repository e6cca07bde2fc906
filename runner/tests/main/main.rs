//! The runner's binary against real session folders, driven by a host of a few lines.

mod answers;
mod any_host;
mod cassettes;
mod conformance;
mod corpus;
mod first_process;
mod handing_over;
mod locks;
mod mcp;
mod mcp_edges;
mod providers;
mod session;
mod turns;
mod waits;
