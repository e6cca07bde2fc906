//! What an agent asks of its host: another agent, packages, another tool server. Checked here so that it hears at once
//! what is wrong; the host checks again and decides.

use lamplighter::session::{NewOutbound, ids};
use serde_json::{Value, json};

use super::arguments::{AddMcpServer, CreateAgent, InstallPackages};
use super::desk::{Desk, Target, row, said};
use super::{Done, Refusal};
use crate::config::OWN_SERVER;
use crate::dispatch::random;
use crate::launch::{epoch_ms, wall_now};

/// Most packages in one request.
const MAX_PACKAGES: usize = 20;
/// Longest name of a package, in bytes.
const MAX_PACKAGE_NAME: usize = 128;
/// Longest name of an agent or a server, in characters.
const MAX_NAME: usize = 64;

pub(super) fn create_agent(desk: &mut Desk, call: CreateAgent) -> Done {
    said(&call.name, "the name")?;
    if call.name.chars().count() > MAX_NAME || call.name.chars().any(char::is_control) {
        return Err(format!("the name is no name of an agent: 1 to {MAX_NAME} characters in one line").into());
    }
    let content = json!({
        "action": "create_agent", "requestId": request_id(), "name": call.name, "instructions": call.instructions,
    });
    ask(desk, &content)?;
    Ok(format!("Agent {:?} requested; you will be told what becomes of it", call.name))
}

pub(super) fn install_packages(desk: &mut Desk, call: InstallPackages) -> Done {
    let count = call.apt.len() + call.npm.len();
    if count == 0 || count > MAX_PACKAGES {
        return Err(format!("there are {count} packages; give 1 to {MAX_PACKAGES} in apt and npm").into());
    }
    if let Some(bad) = call.apt.iter().find(|name| !is_apt(name)) {
        return Err(format!("{bad:?} is no name of a Debian package").into());
    }
    if let Some(bad) = call.npm.iter().find(|name| !is_npm(name)) {
        return Err(format!("{bad:?} is no name of an npm package").into());
    }
    let reason = call.reason.unwrap_or_default();
    ask(desk, &json!({ "action": "install_packages", "apt": call.apt, "npm": call.npm, "reason": reason }))?;
    Ok("Packages requested; somebody has to approve, and you will be told".to_owned())
}

pub(super) fn add_mcp_server(desk: &mut Desk, call: AddMcpServer) -> Done {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if call.name.is_empty() || call.name.len() > MAX_NAME || !call.name.chars().all(plain) {
        return Err(format!("{:?} is no name of a server: letters, digits, - and _", call.name).into());
    }
    if [OWN_SERVER, "nanoclaw"].contains(&call.name.as_str()) {
        return Err(format!("{:?} is the server of these tools and cannot be replaced", call.name).into());
    }
    said(&call.command, "the command")?;
    let content = json!({
        "action": "add_mcp_server", "name": call.name, "command": call.command, "args": call.args, "env": call.env,
    });
    ask(desk, &content)?;
    Ok(format!("Server {:?} requested; somebody has to approve, and you will be told", call.name))
}

fn request_id() -> String {
    ids::system(epoch_ms(wall_now()), random())
}

fn ask(desk: &mut Desk, content: &Value) -> Result<(), Refusal> {
    let target = Target { address: Default::default(), name: String::new(), in_reply_to: None };
    desk.send(&NewOutbound { id: request_id(), ..row(&target, "system", content) })?;
    Ok(())
}

fn is_apt(name: &str) -> bool {
    let first = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= MAX_PACKAGE_NAME
        && name.starts_with(first)
        && name.chars().all(|c| first(c) || matches!(c, '.' | '_' | '+' | '-'))
}

fn is_npm(name: &str) -> bool {
    let part = |part: &str| {
        let first = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(first) && part.chars().all(|c| first(c) || matches!(c, '.' | '_' | '-'))
    };
    let whole = match name.strip_prefix('@') {
        Some(scoped) => scoped.split_once('/').is_some_and(|(scope, name)| part(scope) && part(name)),
        None => part(name),
    };
    name.len() <= MAX_PACKAGE_NAME && whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_packages_are_names_and_no_options_or_commands() {
        for good in ["git", "libc6-dev", "g++", "python3.11"] {
            assert!(is_apt(good), "{good}");
        }
        for bad in ["", "-y", "a b", "a;b", "Git", "$(x)", "a/b"] {
            assert!(!is_apt(bad), "{bad}");
        }
        for good in ["left-pad", "@scope/name.js"] {
            assert!(is_npm(good), "{good}");
        }
        for bad in ["", "@scope", "@/x", "a/b", "../x", "a b", "@s/p/q"] {
            assert!(!is_npm(bad), "{bad}");
        }
    }
}
