//! What a daemon with containers would find: the engine, what it can limit, who the agents are, their image, and what
//! the configuration relaxes.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::Finding;
use crate::containers::docker::engine::{About, Interface, Known};
use crate::containers::docker::image::RunnerImage;
use crate::containers::docker::settings::{Image, Settings};
use crate::containers::docker::{Survey, endpoint, survey};
use crate::host::config::Config;
use crate::host::ear::Ear;
use crate::host::startup;

/// An image that is older lacks a season of security fixes.
const IMAGE_DAYS_MAX: i64 = 90;

/// Everything about the engine. `near` lies where the data folder does.
pub fn examine(
    data: &Path,
    near: &Path,
    config: &Config,
    env: &dyn Fn(&str) -> Option<String>,
) -> Vec<Finding> {
    let topic = "engine";
    let image = match startup::docker_image(config) {
        Ok(image) => image,
        Err(error) => return vec![Finding::bad("image", error.to_string(), error.hint())],
    };
    let endpoint = match endpoint::find(config.runtime.docker.host.as_deref(), env) {
        Ok(endpoint) => endpoint,
        Err(error) => return vec![Finding::bad(topic, error.to_string(), error.hint())],
    };
    let (name, mut findings) = wanted(&image);
    let own = super::installation(data);
    let settings = Settings {
        endpoint: endpoint.clone(),
        // Another's than the daemon's, which would end a container of its own that it does not know.
        installation: own.clone(),
        doctor: own,
        image: image.clone(),
        layout: config.runtime.docker.layout(),
        agent_uid: config.agent.uid,
        confinement: config.runtime.docker.confinement(),
        probe_folder: super::own_folder(near),
        owner_file: PathBuf::new(),
        stop_grace: config.policy.stop_grace.0,
    };
    let mut ear = None;
    let found = match survey(&settings, name.as_deref(), |folder| ear = Ear::at(folder).ok()) {
        Ok(found) => found,
        Err(error) => {
            findings.insert(0, Finding::bad(topic, error.to_string(), error.hint()));
            findings.push(confinement(config));
            return findings;
        }
    };
    let about = &found.about;
    let text = format!(
        "{} on {}, interface {}, {}, at {} (from {})",
        about.version, about.system, about.api, about.storage, endpoint.address, endpoint.said_by
    );
    findings.insert(0, Finding::good(topic, text));
    findings.extend(super::left(&found.removed));
    findings.extend([interface(about), limits(about), security(about), user(&found)]);
    findings.extend(events(&found, ear));
    findings.extend(runtime(config, about));
    if let Some(name) = name {
        findings.push(image_of(&image, &name, found.image));
    }
    findings.push(confinement(config));
    findings
}

/// The image that a start needs, and what is wrong with the runner that it is made of.
fn wanted(image: &Image) -> (Option<String>, Vec<Finding>) {
    match image {
        Image::Named(name) => (Some(name.clone()), Vec::new()),
        Image::OfRunner(path) => match RunnerImage::of(path) {
            Ok(made) => (Some(made.name()), Vec::new()),
            Err(error) => (None, vec![Finding::bad("image", error.to_string(), error.hint())]),
        },
    }
}

/// Requests name no version, so an engine answers in its newest.
fn interface(about: &About) -> Finding {
    let topic = "engine interface";
    let spoken = format!("{}, the newest of {} to {}", about.api, about.api_min, about.api);
    match about.interface() {
        Interface::Known => Finding::good(topic, spoken),
        Interface::Old(tried) => Finding::warning(
            topic,
            format!("{spoken}; the oldest that was tried is {tried}"),
            "use an engine of version 20.10 or later",
        ),
        Interface::New(known) => Finding::warning(
            topic,
            format!("{spoken}; the newest that is known here is {known}"),
            "use a newer lamplighter, or an older engine where something does not work",
        ),
        Interface::Unnamed => Finding::warning(topic, "the engine names no version", "see what it is"),
    }
}

fn limits(about: &About) -> Finding {
    let topic = "cgroups";
    if about.unlimited.is_empty() {
        Finding::good(topic, format!("version {}", about.cgroups))
    } else {
        let text =
            format!("version {}, and this engine cannot limit {}", about.cgroups, about.unlimited.join(", "));
        let advice = "enable these controllers: for a rootless engine with Delegate=yes in its unit, else on the \
                      kernel's command line";
        Finding::warning(topic, text, advice)
    }
}

fn security(about: &About) -> Finding {
    let topic = "engine security";
    let options = about.security.join(", ");
    if about.security.iter().any(|it| it == "seccomp") {
        Finding::good(topic, options)
    } else {
        let text =
            if options.is_empty() { "no seccomp".into() } else { format!("{options}, and no seccomp") };
        Finding::warning(
            topic,
            text,
            "use an engine and a kernel with seccomp: agents can make any system call",
        )
    }
}

fn user(found: &Survey) -> Finding {
    let topic = "agents' user";
    let inside = found.owners.inside;
    let inside = format!("{}:{} in the container", inside.uid, inside.gid);
    match found.tried.clone().map(|owner| found.owners.proved(owner)) {
        Ok(Ok(it)) => Finding::good(
            topic,
            format!("{inside}, {}:{} on this machine (tried)", it.outside.uid, it.outside.gid),
        ),
        Ok(Err(why)) => Finding::bad(topic, why, "change the engine's configuration, or the daemon's user"),
        Err(why) => {
            let outside = found.owners.outside;
            let text =
                format!("{inside}, {}:{} on this machine (not tried: {why})", outside.uid, outside.gid);
            match (found.owners.mapped, &found.image) {
                (true, _) => Finding::bad(
                    topic,
                    text,
                    "users are mapped here, so the image must know the command probe",
                ),
                (false, Some(_)) => {
                    Finding::warning(topic, text, "use an image whose entry point is a runner")
                }
                (false, None) => Finding::good(topic, text),
            }
        }
    }
}

/// Whether what a container changes in a folder is announced here; none when no container changed anything.
fn events(found: &Survey, ear: Option<Ear>) -> Option<Finding> {
    let topic = "events of mounts";
    found.tried.as_ref().ok()?;
    Some(match ear.and_then(|ear| ear.hear()) {
        Some(_) => Finding::good(topic, "a change made in a container is announced here"),
        None => Finding::warning(
            topic,
            "a change made in a container is not announced here",
            "it works, by looking at each running session several times a second; keep the data folder on a disk of \
             the machine that the engine runs on",
        ),
    })
}

fn image_of(image: &Image, name: &str, known: Option<Known>) -> Finding {
    let topic = "image";
    match (image, known) {
        (_, Some(known)) => {
            let days = known.created.parse::<Timestamp>().ok().map(|made| {
                let age = Timestamp::now().as_second().saturating_sub(made.as_second());
                age / 86_400
            });
            let age = days.map(|days| format!(", {days} days old")).unwrap_or_default();
            let text = format!("{name}, {} MiB{age}", known.bytes >> 20);
            match image {
                Image::Named(_) if days.is_some_and(|days| days > IMAGE_DAYS_MAX) => Finding::warning(
                    topic,
                    text,
                    "build it again for the security fixes since: container/build.sh",
                ),
                _ => Finding::good(topic, text),
            }
        }
        (Image::OfRunner(path), None) => {
            Finding::good(topic, format!("{name}; the first start makes it of {}", path.display()))
        }
        (Image::Named(_), None) => Finding::bad(
            topic,
            format!("the engine has no image {name:?}"),
            "build it with container/build.sh or pull it, or leave [runtime.docker] image out",
        ),
    }
}

fn confinement(config: &Config) -> Finding {
    let topic = "confinement";
    let docker = &config.runtime.docker;
    let mut relaxed = docker.relaxed();
    relaxed.extend(config.limits.relaxed());
    if relaxed.is_empty() {
        let text = format!(
            "network {}, {} MiB of memory, {} processors, {} processes",
            docker.network, docker.memory_mib, docker.cpus, docker.pids
        );
        Finding::good(topic, text)
    } else {
        let advice = "leave these keys of [runtime.docker] and [limits] out, unless an agent that you trust needs them";
        Finding::warning(topic, relaxed.join("; "), advice)
    }
}

fn runtime(config: &Config, about: &About) -> Option<Finding> {
    let topic = "OCI runtime";
    let name = config.runtime.docker.oci_runtime.as_ref()?;
    Some(if about.runtimes.contains(name) {
        Finding::good(topic, name.clone())
    } else {
        let text = format!("the engine has no {name:?}; it has {}", about.runtimes.join(", "));
        Finding::bad(
            topic,
            text,
            "install it and name it in the engine's daemon.json, or leave oci_runtime out",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::docker::owners;
    use crate::containers::docker::settings::User;
    use crate::host::doctor::Grade;

    #[test]
    fn what_is_relaxed_is_shown_with_its_key() {
        let mut config = Config::default();
        assert_eq!(confinement(&config).grade, Grade::Good);
        config.runtime.docker.no_new_privileges = false;
        let finding = confinement(&config);
        assert_eq!(finding.grade, Grade::Warning);
        assert!(finding.found.contains("no_new_privileges"), "{finding:?}");
        config.runtime.docker.no_new_privileges = true;
        for (out_max, found) in [(0, "out/ has no limit (limits.out_max)"), (3 << 30, "3072 MiB in out/")] {
            config.limits.out_max = out_max;
            let finding = confinement(&config);
            assert!(finding.grade == Grade::Warning && finding.found.contains(found), "{finding:?}");
        }
        config.limits.out_max = 8 << 20;
        assert_eq!(confinement(&config).grade, Grade::Good);
    }

    #[test]
    fn an_engine_that_is_away_is_bad_and_named_with_the_way_out() {
        let mut config = Config::default();
        config.runtime.docker.host = Some("unix:///nowhere/docker.sock".into());
        config.runtime.docker.image = Some("some:image".into());
        let findings = examine(Path::new("/tmp/data"), Path::new("/tmp"), &config, &|_| None);
        assert_eq!(findings[0].grade, Grade::Bad);
        assert!(findings[0].found.contains("/nowhere/docker.sock"), "{findings:?}");
        assert!(findings[0].advice.contains("--runtime process"), "{findings:?}");
    }

    #[test]
    fn what_an_engine_lacks_is_said() {
        let about = About {
            cgroups: "2".into(),
            unlimited: vec!["memory", "pids"],
            security: vec!["rootless".into()],
            runtimes: vec!["runc".into()],
            ..About::default()
        };
        assert!(limits(&about).found.contains("cannot limit memory, pids"));
        let speaks = |api_min: &str, api: &str| {
            let about = About { api: api.into(), api_min: api_min.into(), ..About::default() };
            interface(&about).grade
        };
        assert_eq!(speaks("1.12", "1.41"), Grade::Good);
        assert_eq!(speaks("1.24", "1.99"), Grade::Good);
        assert_eq!(speaks("1.12", "1.40"), Grade::Warning);
        assert_eq!(speaks("1.98", "1.99"), Grade::Warning);
        assert_eq!(speaks("", ""), Grade::Warning);
        assert!(security(&about).found.contains("no seccomp"));
        let owners = owners::decide(User { uid: 1_000, gid: 1_000 }, 10_001, &about);
        let known = Known { id: String::new(), created: String::new(), bytes: 1 };
        let mut found = Survey {
            about: about.clone(),
            image: Some(known),
            owners,
            tried: Ok(User { uid: 1_000, gid: 1_000 }),
            removed: Vec::new(),
        };
        assert_eq!(user(&found).found, "0:0 in the container, 1000:1000 on this machine (tried)");
        assert_eq!(events(&found, None).map(|it| it.grade), Some(Grade::Warning));
        found.tried = Ok(User { uid: 101_000, gid: 101_000 });
        assert_eq!(user(&found).grade, Grade::Bad);
        found.tried = Err("it ended with 64".into());
        assert_eq!((user(&found).grade, events(&found, None)), (Grade::Warning, None));
        let mut config = Config::default();
        assert_eq!(runtime(&config, &about), None);
        config.runtime.docker.oci_runtime = Some("runsc".into());
        assert_eq!(runtime(&config, &about).map(|it| it.grade), Some(Grade::Bad));
        let named = Image::Named("agent".into());
        assert_eq!(image_of(&named, "agent", None).grade, Grade::Bad);
        let known = |created: &str| Known { id: String::new(), created: created.into(), bytes: 5 << 20 };
        let old = image_of(&named, "agent", Some(known("2020-01-01T00:00:00.5Z")));
        assert!(old.grade == Grade::Warning && old.found.contains("agent, 5 MiB, "), "{old:?}");
    }
}
