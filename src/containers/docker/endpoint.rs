//! Where the engine listens: the configuration, `DOCKER_HOST`, the current context of the docker command, or the usual
//! socket, in this order.
//!
//! Invariant: reads files of the docker command and changes none.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The socket of a system's engine.
const USUAL: &str = "unix:///var/run/docker.sock";
/// Where engines listen that are encrypted, by agreement.
const TLS_PORT: &str = "2376";
/// Contexts that are looked through for the current one; people have a handful.
const CONTEXTS_MAX: usize = 256;

/// Where the engine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `unix://path` or `tcp://host:port`.
    pub address: String,
    /// Who says so, for people.
    pub said_by: String,
}

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EndpointError {
    /// A way to an engine that this build cannot take.
    #[error("{said_by} names the engine {address:?}, which is neither unix:// nor tcp://")]
    Unknown {
        /// As it was given.
        address: String,
        /// Who says so.
        said_by: String,
    },
    /// An engine that is to be spoken to encrypted, which this build cannot do.
    #[error(
        "{said_by} names the engine {address:?}, and {why}; this build speaks to engines without encryption only"
    )]
    Encrypted {
        /// As it was given.
        address: String,
        /// Who says so.
        said_by: String,
        /// What says that it is encrypted.
        why: String,
    },
    /// The current context is nowhere described.
    #[error("the docker context {name:?} is not described below {folder}")]
    NoContext {
        /// Its name.
        name: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
}

impl EndpointError {
    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => {
                "set [runtime.docker] host to \"unix:///path/to/docker.sock\"; ssh -L forwards a remote engine's socket"
            }
            Self::Encrypted { .. } => {
                "forward the engine's socket (ssh -L /tmp/docker.sock:/var/run/docker.sock host) and set \
                 [runtime.docker] host = \"unix:///tmp/docker.sock\""
            }
            Self::NoContext { .. } => "choose one with `docker context use`, or set [runtime.docker] host",
        }
    }
}

impl Endpoint {
    /// Whether it is a socket of this machine, which nobody encrypts.
    fn is_socket(&self) -> bool {
        self.address.starts_with("unix://")
    }
}

fn encrypted(found: Endpoint, why: String) -> EndpointError {
    EndpointError::Encrypted { address: found.address, said_by: found.said_by, why }
}

/// Finds the engine. `configured` is `[runtime.docker] host`.
///
/// # Errors
/// See [`EndpointError`].
pub fn find(
    configured: Option<&str>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Endpoint, EndpointError> {
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    if let Some(address) = configured {
        return checked(address, "[runtime.docker] host");
    }
    if let Some(address) = env("DOCKER_HOST") {
        let found = checked(&address, "DOCKER_HOST")?;
        return match ["DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"].into_iter().find(|name| env(name).is_some()) {
            Some(name) if !found.is_socket() => Err(encrypted(found, format!("{name} is set"))),
            _ => Ok(found),
        };
    }
    let folder = env("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| env("HOME").map(|home| PathBuf::from(home).join(".docker")));
    let name = env("DOCKER_CONTEXT").or_else(|| {
        let config = json(&folder.as_ref()?.join("config.json"))?;
        config["currentContext"].as_str().map(str::to_owned)
    });
    match (name.filter(|name| !name.is_empty() && name != "default"), folder) {
        (Some(name), Some(folder)) => {
            let meta = folder.join("contexts/meta");
            let (address, has_certificates) = host_of(&meta, &name)
                .ok_or_else(|| EndpointError::NoContext { name: name.clone(), folder: meta })?;
            let found = checked(&address, &format!("the docker context {name:?}"))?;
            if has_certificates && !found.is_socket() {
                return Err(encrypted(found, "it has certificates for it".into()));
            }
            Ok(found)
        }
        _ => checked(USUAL, "the default"),
    }
}

fn checked(address: &str, said_by: &str) -> Result<Endpoint, EndpointError> {
    let said_by = said_by.to_owned();
    let address = if address.starts_with('/') { format!("unix://{address}") } else { address.to_owned() };
    if ["unix:///", "tcp://", "http://"].iter().any(|scheme| address.starts_with(scheme)) {
        let found = Endpoint { address, said_by };
        let port = found.address.trim_end_matches('/').rsplit_once(':').map(|(_, port)| port);
        if !found.is_socket() && port == Some(TLS_PORT) {
            return Err(encrypted(found, format!("port {TLS_PORT} is that of encrypted engines")));
        }
        Ok(found)
    } else {
        Err(EndpointError::Unknown { address, said_by })
    }
}

/// The host of a context, and whether it has certificates. The folders are named by a digest of the context's name; the
/// name is inside as well.
fn host_of(meta: &Path, name: &str) -> Option<(String, bool)> {
    fs::read_dir(meta).ok()?.flatten().take(CONTEXTS_MAX).find_map(|entry| {
        let context = json(&entry.path().join("meta.json"))?;
        if context["Name"] != name {
            return None;
        }
        let host = context["Endpoints"]["docker"]["Host"].as_str()?.to_owned();
        let certificates = meta.with_file_name("tls").join(entry.file_name()).join("docker");
        Some((host, certificates.is_dir()))
    })
}

fn json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_wins_over_docker_host_and_that_over_the_context() {
        let home = tempfile::tempdir().unwrap();
        let docker = home.path().join(".docker");
        let meta = docker.join("contexts/meta/0123");
        fs::create_dir_all(&meta).unwrap();
        fs::write(docker.join("config.json"), r#"{"currentContext":"mine"}"#).unwrap();
        let text = r#"{"Name":"mine","Endpoints":{"docker":{"Host":"unix:///run/user/1/docker.sock"}}}"#;
        fs::write(meta.join("meta.json"), text).unwrap();
        let path = home.path().to_str().unwrap().to_owned();
        let at = |configured: Option<&str>, host: Option<&str>, context: Option<&str>| {
            let env = |name: &str| match name {
                "HOME" => Some(path.clone()),
                "DOCKER_HOST" => host.map(str::to_owned),
                "DOCKER_CONTEXT" => context.map(str::to_owned),
                _ => None,
            };
            find(configured, &env).map(|it| it.address)
        };
        assert_eq!(at(Some("/a.sock"), Some("tcp://b:1"), None).unwrap(), "unix:///a.sock");
        assert_eq!(at(None, Some("tcp://b:1"), None).unwrap(), "tcp://b:1");
        assert_eq!(at(None, None, None).unwrap(), "unix:///run/user/1/docker.sock");
        assert_eq!(at(None, Some(""), Some("default")).unwrap(), USUAL);
        let error = at(None, None, Some("other")).unwrap_err();
        assert!(error.to_string().contains("\"other\""), "{error}");
        let error = at(None, Some("ssh://host"), None).unwrap_err();
        assert!(error.to_string().starts_with("DOCKER_HOST names"), "{error}");
        assert!(error.hint().contains("unix://"));
    }

    #[test]
    fn an_engine_that_is_to_be_encrypted_is_refused_and_not_spoken_to_in_the_clear() {
        let home = tempfile::tempdir().unwrap();
        let contexts = home.path().join(".docker/contexts");
        for (folder, name, host) in [
            ("01", "far", "tcp://far:2375"),
            ("02", "near", "unix:///a.sock"),
            ("03", "plain", "tcp://far:2375"),
        ] {
            let meta = contexts.join("meta").join(folder);
            fs::create_dir_all(&meta).unwrap();
            let text = format!(r#"{{"Name":"{name}","Endpoints":{{"docker":{{"Host":"{host}"}}}}}}"#);
            fs::write(meta.join("meta.json"), text).unwrap();
        }
        for folder in ["01", "02"] {
            fs::create_dir_all(contexts.join("tls").join(folder).join("docker")).unwrap();
        }
        let path = home.path().to_str().unwrap().to_owned();
        let at = |configured: Option<&str>, set: &[(&str, &str)]| {
            let env = |name: &str| {
                let set = set.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned());
                set.or_else(|| (name == "HOME").then(|| path.clone()))
            };
            find(configured, &env)
        };
        let tls = ("DOCKER_TLS_VERIFY", "1");
        for (configured, set) in [
            (Some("tcp://far:2376"), &[][..]),
            (None, &[("DOCKER_HOST", "tcp://far:2375"), tls]),
            (None, &[("DOCKER_HOST", "tcp://far:2375"), ("DOCKER_CERT_PATH", "/certs")]),
            (None, &[("DOCKER_CONTEXT", "far")]),
        ] {
            let error = at(configured, set).unwrap_err();
            assert!(matches!(error, EndpointError::Encrypted { .. }), "{set:?}: {error}");
            assert!(error.to_string().contains("without encryption"), "{error}");
            assert!(error.hint().contains("ssh -L"), "{error}");
        }
        for (configured, set) in [
            (Some("tcp://far:2375"), &[tls][..]),
            (None, &[("DOCKER_HOST", "unix:///a.sock"), tls]),
            (None, &[("DOCKER_CONTEXT", "near")]),
            (None, &[("DOCKER_CONTEXT", "plain")]),
        ] {
            assert!(at(configured, set).is_ok(), "{configured:?} {set:?}");
        }
    }

    #[test]
    fn without_anything_it_is_the_usual_socket() {
        let found = find(None, &|_| None).unwrap();
        assert_eq!((found.address.as_str(), found.said_by.as_str()), (USUAL, "the default"));
    }
}
