//! The text of the unit: what systemd is told about the daemon, and how paths are written so that it reads them back.
//!
//! Invariant: pure; the same facts give the same text, and `packaging/lamplighter.service` is what it gives for the
//! Debian package.
//! Invariant: a path that a unit cannot carry is refused, never cut or guessed.

use std::path::Path;

use crate::base::Ms;
use crate::host::config::RuntimeKind;

/// Seconds beyond two stop graces before systemd kills what is left. The daemon asks its agents once by itself
/// and once through the runtime, and gives up seconds after each; the rest is for a slow disk.
const STOP_MARGIN: u64 = 40;
/// A start that takes longer than this is none: it replays the newest segment and opens the sessions that have
/// changed.
const START_MAX: &str = "15min";
/// Seconds before a daemon that failed is started again, the first time; everywhere, where the pause cannot grow.
/// Long enough that a log with nothing else in it stays readable.
const RESTART_FIRST: u64 = 10;
/// In so many steps the pause grows from the first to the longest.
const RESTART_STEPS: u64 = 8;
/// The longest pause: nobody waits much longer for a daemon after whatever was away is back.
const RESTART_MAX: &str = "5min";
/// What root keeps: sessions' folders are given to the user of the agents, and read and removed after them.
const ROOT_KEEPS: &str = "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_KILL";
/// Where a system service finds no home of a user.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];

/// Whose systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The machine's own.
    System,
    /// One user's.
    User,
}

/// What a unit is written from.
#[derive(Clone, Debug)]
pub struct Unit<'a> {
    /// The daemon's program, absolute.
    pub program: &'a Path,
    /// The data folder, absolute.
    pub data: &'a Path,
    /// The configuration file, absolute, if it is not the data folder's own.
    pub config: Option<&'a Path>,
    /// Whose systemd.
    pub scope: Scope,
    /// As whom a system service runs; root without it.
    pub user: Option<&'a str>,
    /// The group that may use the engine's socket, where the daemon needs it for that.
    pub engine_group: Option<&'a str>,
    /// Where agents run. Children of the daemon live in its sandbox, which is wider for that.
    pub runtime: RuntimeKind,
    /// `policy.stop_grace`.
    pub stop_grace: Ms,
    /// Other paths that the configuration names.
    pub needs: Vec<&'a Path>,
    /// The package's unit, which has a manual and a file for the environment.
    pub packaged: bool,
}

impl Unit<'_> {
    /// The unit's text.
    ///
    /// # Errors
    /// When a path or a name cannot be written in a unit.
    pub fn text(&self) -> Result<String, String> {
        let mut out = String::new();
        self.head(&mut out)?;
        self.service(&mut out)?;
        self.sandbox(&mut out)?;
        let target = match self.scope {
            Scope::System => "multi-user.target",
            Scope::User => "default.target",
        };
        line(&mut out, &format!("\n[Install]\nWantedBy={target}"));
        Ok(out)
    }

    fn head(&self, out: &mut String) -> Result<(), String> {
        line(out, "[Unit]\nDescription=Lamplighter, a host for AI agents");
        if self.packaged {
            line(out, "Documentation=man:lamplighter(1) file:///usr/share/doc/lamplighter/UPGRADE.md");
        }
        match self.scope {
            Scope::System => {
                line(out, "After=network-online.target docker.service\nWants=network-online.target");
            }
            // A user's manager knows no network; a rootless engine is a unit of it, where there is one.
            Scope::User => line(out, "After=docker.service podman.socket"),
        }
        line(out, "# A folder on a disk that is not mounted yet is waited for.");
        line(out, &format!("RequiresMountsFor={}", word(self.data)?));
        line(out, "# Never given up: what a start needs, an engine or a disk, may come back after hours.");
        line(out, "StartLimitIntervalSec=0");
        Ok(())
    }

    fn service(&self, out: &mut String) -> Result<(), String> {
        let config =
            self.config.map(|path| argument(path).map(|it| format!(" --config {it}"))).transpose()?;
        line(out, "\n[Service]\n# It says itself when it takes messages.");
        line(out, &format!("Type=notify\nTimeoutStartSec={START_MAX}"));
        line(
            out,
            &format!(
                "ExecStart={} run --data {}{}",
                word(self.program)?,
                argument(self.data)?,
                config.unwrap_or_default()
            ),
        );
        if let Some(user) = self.user {
            line(out, &format!("User={}", name(user)?));
        }
        if let Some(group) = self.engine_group {
            line(out, "# Who may use the engine's socket may do there what root may.");
            line(out, &format!("SupplementaryGroups={}", name(group)?));
        }
        if self.packaged {
            line(out, "# Credentials that [agent] env names, one KEY=VALUE a line, readable for root alone.");
            line(out, "EnvironmentFile=-/etc/lamplighter/environment");
        }
        line(out, "# Anything but an error of the command line or the configuration may have gone by then.");
        line(out, "Restart=on-failure\nRestartPreventExitStatus=2");
        line(
            out,
            "# From systemd 254 on the pause grows in steps; before, these two are passed over and it stays as it is.",
        );
        line(
            out,
            &format!(
                "RestartSec={RESTART_FIRST}\nRestartSteps={RESTART_STEPS}\nRestartMaxDelaySec={RESTART_MAX}"
            ),
        );
        line(out, "# The daemon ends its agents itself, within policy.stop_grace.");
        let stop = self.stop_grace.0.div_ceil(1_000).saturating_mul(2).saturating_add(STOP_MARGIN);
        line(out, &format!("KillMode=mixed\nTimeoutStopSec={stop}"));
        line(out, "LimitNOFILE=65536\nUMask=0077");
        Ok(())
    }

    fn sandbox(&self, out: &mut String) -> Result<(), String> {
        // Filters of system calls need nothing but this, so they hold in a user's manager too.
        line(out, "NoNewPrivileges=yes\nLockPersonality=yes\nRestrictRealtime=yes\nRestrictSUIDSGID=yes");
        // Netlink: programs that list the network's interfaces fail without it.
        line(
            out,
            "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK\nSystemCallArchitectures=native",
        );
        if self.scope == Scope::User {
            return Ok(());
        }
        line(out, &format!("ProtectSystem=strict\nReadWritePaths={}", word(self.data)?));
        let home = if self.is_in_a_home() { "read-only" } else { "yes" };
        line(out, &format!("ProtectHome={home}\nPrivateTmp=yes\nPrivateDevices=yes\nProtectProc=invisible"));
        line(out, "ProtectKernelTunables=yes\nProtectKernelModules=yes\nProtectKernelLogs=yes");
        line(out, "ProtectControlGroups=yes\nProtectClock=yes\nProtectHostname=yes\nKeyringMode=private");
        let keeps = if self.user.is_some() { "" } else { ROOT_KEEPS };
        line(out, &format!("CapabilityBoundingSet={keeps}\nSystemCallErrorNumber=EPERM"));
        match self.runtime {
            RuntimeKind::Docker => line(
                out,
                "# Agents run in containers, so this is the daemon's alone.\n\
                 SystemCallFilter=@system-service\nSystemCallFilter=~@privileged @resources\n\
                 SystemCallFilter=@chown\nRestrictNamespaces=yes\nMemoryDenyWriteExecute=yes",
            ),
            RuntimeKind::Process => line(
                out,
                "# Agents are children of the daemon: they compile at run time and make sandboxes of their own.\n\
                 SystemCallFilter=~@clock @cpu-emulation @module @obsolete @raw-io @reboot @swap",
            ),
        }
        if self.user.is_some() {
            line(out, "RemoveIPC=yes");
        }
        Ok(())
    }

    fn is_in_a_home(&self) -> bool {
        let named =
            [self.program, self.data].into_iter().chain(self.config).chain(self.needs.iter().copied());
        named.into_iter().any(|path| HOMES.iter().any(|home| path.starts_with(home)))
    }
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

/// A path as a word of a unit (systemd.syntax(7); specifiers: systemd.unit(5)).
///
/// # Errors
/// When it is not UTF-8 or has a control character in it.
pub fn word(path: &Path) -> Result<String, String> {
    let text = path.to_str().ok_or_else(|| format!("{} is not UTF-8", path.display()))?;
    if text.chars().any(char::is_control) {
        return Err(format!("{text:?} has a control character in it"));
    }
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    let is_plain =
        |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '+' | '@' | ':' | '%' | '$');
    Ok(if text.chars().all(is_plain) { escaped } else { format!("\"{escaped}\"") })
}

/// As [`word`], where variables are replaced: behind the program of a command line.
fn argument(path: &Path) -> Result<String, String> {
    word(path).map(|text| text.replace('$', "$$"))
}

/// A user's or group's name, which is looked up by systemd.
fn name(text: &str) -> Result<&str, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if !text.is_empty() && text.chars().all(is_plain) && !text.starts_with('-') {
        Ok(text)
    } else {
        Err(format!("{text:?} is no name of a user or group"))
    }
}
