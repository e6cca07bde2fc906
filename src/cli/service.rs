//! `lamplighter service …`: the daemon as a unit of systemd, of this user or, for root, of the system.
//!
//! Invariant: a unit that is there and was not made by this command is left alone.
//! Invariant: nothing is written for the system by anybody but root, and nothing before everything was checked.

mod unit;

#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::{Args, Subcommand};

use self::unit::{Scope, Unit};
use super::error::{CommandError, code};
use crate::base::OsDisk;
use crate::base::disk::replace;
use crate::host::config::{Config, Overrides, RuntimeKind};

/// The unit's name.
const UNIT: &str = "lamplighter.service";
/// The first line of a unit that is ours.
const MARK: &str = "# Made by `lamplighter service install`; `lamplighter service remove` takes it away.";
/// The data folder of a service of the system, unless one is named.
const SYSTEM_DATA: &str = "/var/lib/lamplighter";
/// The engine's socket, unless the configuration names another.
const ENGINE_SOCKET: &str = "/var/run/docker.sock";
/// Where packages have their units; a unit of ours would hide theirs.
const PACKAGED: [&str; 3] =
    ["/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// `service`
#[derive(Args, Clone, Debug)]
pub struct ServiceArgs {
    /// The system's own manager, as is usual for root. The data folder is then /var/lib/lamplighter unless one is
    /// named.
    #[arg(long, global = true, conflicts_with = "user")]
    pub system: bool,
    /// This user's manager, as is usual for anybody but root.
    #[arg(long, global = true)]
    pub user: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: ServiceCommand,
}

/// What can be done with the unit.
#[derive(Subcommand, Clone, Debug)]
pub enum ServiceCommand {
    /// Writes the unit and starts it, now and at every boot. A user's starts at login; `loginctl enable-linger` makes
    /// it start at boot too. After a change of the configuration's runtime it is to be called again.
    Install(UnitArgs),
    /// Prints the unit that `install` would write, and changes nothing.
    Print(UnitArgs),
    /// What systemd says about it.
    Status,
    /// Its log, newest last.
    Logs {
        /// Goes on with what comes.
        #[arg(long, short)]
        follow: bool,
    },
    /// Stops it and takes the unit away. The data folder stays as it is.
    Remove,
}

/// What the unit says about the daemon.
#[derive(Args, Clone, Debug, Default)]
pub struct UnitArgs {
    /// The configuration file; without it, lamplighter.toml in the data folder if it is there.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// As whom a service of the system runs. Without it root, and then agents of the process runtime are root too.
    #[arg(long, value_name = "USER")]
    pub run_as: Option<String>,
}

impl Scope {
    fn of(args: &ServiceArgs) -> Self {
        match (args.system, args.user) {
            (true, _) => Self::System,
            (_, true) => Self::User,
            _ if rustix::process::geteuid().is_root() => Self::System,
            _ => Self::User,
        }
    }

    fn unit(self) -> PathBuf {
        let folder = match self {
            Self::System => PathBuf::from("/etc/systemd/system"),
            Self::User => {
                let config = std::env::var_os("XDG_CONFIG_HOME").filter(|path| !path.is_empty());
                let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".config");
                config.map_or_else(home, PathBuf::from).join("systemd/user")
            }
        };
        folder.join(UNIT)
    }

    fn data(self, named: Option<PathBuf>, usual: PathBuf) -> PathBuf {
        match self {
            Self::System => named.unwrap_or_else(|| SYSTEM_DATA.into()),
            Self::User => usual,
        }
    }
}

/// Does what the command says. `named` is the data folder that the flag or the environment names, `usual` the one that
/// other commands take without it.
///
/// # Errors
/// When systemd is not there or refuses, a unit is there that is not ours, or the user may not.
pub fn service(named: Option<PathBuf>, usual: PathBuf, args: &ServiceArgs) -> Result<(), CommandError> {
    let scope = Scope::of(args);
    let data = scope.data(named, usual);
    match &args.command {
        ServiceCommand::Print(with) => {
            Ok(io::stdout().write_all(Plan::of(scope, &data, with)?.text()?.as_bytes())?)
        }
        ServiceCommand::Install(with) => install(scope, &Plan::of(scope, &data, with)?),
        ServiceCommand::Status => systemctl(scope, &["--no-pager", "status", UNIT]),
        ServiceCommand::Logs { follow } => {
            let mut journal = Command::new("journalctl");
            if scope == Scope::User {
                journal.arg("--user");
            }
            journal.args(["--unit", UNIT, "--output", "cat"]);
            journal.args(if *follow { ["--follow", "--lines=100"] } else { ["--no-pager", "--lines=1000"] });
            run(journal, "journalctl")
        }
        ServiceCommand::Remove => remove(scope, &data),
    }
}

fn install(scope: Scope, plan: &Plan) -> Result<(), CommandError> {
    refuse_a_stranger(scope, rustix::process::geteuid().is_root())?;
    let path = scope.unit();
    refuse_a_foreign(&path)?;
    if scope == Scope::System {
        refuse_a_packaged(&PACKAGED.map(Path::new))?;
    }
    let text = plan.text()?;
    for warning in plan.warnings() {
        writeln!(io::stderr(), "lamplighter: {warning}")?;
    }
    plan.make_data()?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| cannot("make", folder, &error))?;
    }
    // Whole or not at all: systemd may read it at any time.
    replace(&OsDisk, &path, text.as_bytes())
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o644)))
        .map_err(|error| cannot("write", &path, &error))?;
    systemctl(scope, &["daemon-reload"])?;
    systemctl(scope, &["enable", UNIT])?;
    // Also one that runs already, with what was written before.
    systemctl(scope, &["restart", UNIT])?;
    Ok(writeln!(io::stdout(), "wrote {} and started it on {}", path.display(), plan.data.display())?)
}

fn remove(scope: Scope, data: &Path) -> Result<(), CommandError> {
    let path = scope.unit();
    refuse_a_foreign(&path)?;
    if !path.exists() {
        return Ok(writeln!(io::stdout(), "there is no unit {}; nothing was done", path.display())?);
    }
    refuse_a_stranger(scope, rustix::process::geteuid().is_root())?;
    let data = data_of(&path).unwrap_or_else(|| data.display().to_string());
    systemctl(scope, &["disable", "--now", UNIT])?;
    fs::remove_file(&path).map_err(|error| cannot("remove", &path, &error))?;
    systemctl(scope, &["daemon-reload"])?;
    Ok(writeln!(io::stdout(), "removed {}; the data folder {data} stays as it is", path.display())?)
}

/// The data folder that a unit names, as it stands there.
fn data_of(unit: &Path) -> Option<String> {
    let text = fs::read_to_string(unit).ok()?;
    text.lines().find_map(|line| line.strip_prefix("RequiresMountsFor=")).map(str::to_owned)
}

fn cannot(doing: &str, path: &Path, error: &io::Error) -> CommandError {
    CommandError::new(code::IO, format!("cannot {doing} {}: {error}", path.display()), "")
}

fn refuse_a_stranger(scope: Scope, is_root: bool) -> Result<(), CommandError> {
    if scope == Scope::User || is_root {
        return Ok(());
    }
    let hint = "call it with sudo, or without --system for a service of your own";
    Err(CommandError::new(code::FAILURE, "only root changes the system's services", hint))
}

fn refuse_a_foreign(path: &Path) -> Result<(), CommandError> {
    match fs::read_to_string(path) {
        Ok(text) if text.starts_with(MARK) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => {
            let text = format!("{} was not made by this command and was left as it is", path.display());
            Err(CommandError::new(code::FAILURE, text, "move it away first"))
        }
        Err(error) => Err(cannot("read", path, &error)),
    }
}

fn refuse_a_packaged(folders: &[&Path]) -> Result<(), CommandError> {
    let Some(unit) = folders.iter().map(|folder| folder.join(UNIT)).find(|unit| unit.exists()) else {
        return Ok(());
    };
    let text = format!("a package has installed {}, which another unit would hide", unit.display());
    Err(CommandError::new(code::FAILURE, text, "start that one: systemctl enable --now lamplighter"))
}

fn systemctl(scope: Scope, args: &[&str]) -> Result<(), CommandError> {
    let mut command = Command::new("systemctl");
    if scope == Scope::User {
        command.arg("--user");
    }
    command.args(args);
    run(command, "systemctl")
}

fn run(mut command: Command, name: &str) -> Result<(), CommandError> {
    let status = command.stdin(Stdio::null()).status().map_err(|error| {
        let hint = "this needs systemd; elsewhere have your service manager run `lamplighter run`";
        CommandError::new(code::UNAVAILABLE, format!("cannot run {name}: {error}"), hint)
    })?;
    match status.success() {
        true => Ok(()),
        // It has said why.
        false => Err(CommandError::new(code::FAILURE, format!("{name} ended with {status}"), "")),
    }
}

/// A line of the system's databases of users and groups, wherever they are.
fn entry(database: &str, key: impl AsRef<OsStr>) -> Option<Vec<String>> {
    let output = Command::new("getent").args([database, "--"]).arg(key).stdin(Stdio::null()).output().ok()?;
    let line = String::from_utf8(output.stdout).ok()?;
    let fields: Vec<String> = line.lines().next()?.split(':').map(str::to_owned).collect();
    (output.status.success() && fields.len() >= 3).then_some(fields)
}

/// A user that the system knows.
#[derive(Clone, Debug)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
}

impl User {
    fn find(name: &str) -> Result<Self, CommandError> {
        let found = entry("passwd", name).and_then(|fields| {
            Some(Self {
                name: name.to_owned(),
                uid: fields.get(2)?.parse().ok()?,
                gid: fields.get(3)?.parse().ok()?,
            })
        });
        found.ok_or_else(|| {
            let hint = format!(
                "make it: useradd --system --home-dir {SYSTEM_DATA} --shell /usr/sbin/nologin {name}"
            );
            CommandError::new(code::USAGE, format!("there is no user {name:?}"), hint)
        })
    }
}

/// What is to be written, from facts that were looked up.
#[derive(Debug)]
struct Plan {
    scope: Scope,
    program: PathBuf,
    data: PathBuf,
    config_file: Option<PathBuf>,
    config: Config,
    user: Option<User>,
    engine_group: Option<String>,
}

impl Plan {
    fn of(scope: Scope, data: &Path, args: &UnitArgs) -> Result<Self, CommandError> {
        let program =
            std::env::current_exe().map_err(|error| cannot("find", Path::new("lamplighter"), &error))?;
        let absolute =
            |path: &Path| std::path::absolute(path).map_err(|error| cannot("resolve", path, &error));
        let data = absolute(data)?;
        let config_file = args.config.as_deref().map(absolute).transpose()?;
        // As the service will see it: it has none of this shell's environment.
        let config = Config::load(config_file.as_deref(), &data, &|_| None, &Overrides::default())?;
        let user = match (scope, args.run_as.as_deref()) {
            (Scope::User, Some(_)) => {
                let hint = "add --system, or leave --run-as out";
                return Err(CommandError::new(code::USAGE, "a user's service runs as that user", hint));
            }
            (_, None | Some("root")) => None,
            (Scope::System, Some(name)) => Some(User::find(name)?),
        };
        let mut plan = Self { scope, program, data, config_file, config, user, engine_group: None };
        if plan.user.is_some() && plan.config.runtime.kind == RuntimeKind::Docker {
            plan.engine_group = plan.socket().and_then(|socket| group_of(&socket));
        }
        Ok(plan)
    }

    /// The engine's socket, if it is one.
    fn socket(&self) -> Option<PathBuf> {
        match &self.config.runtime.docker.host {
            Some(host) => host.strip_prefix("unix://").map(PathBuf::from),
            None => Some(ENGINE_SOCKET.into()),
        }
    }

    fn text(&self) -> Result<String, CommandError> {
        let socket = self.socket();
        let command = self.config.runtime.process.command.as_ref().and_then(|command| command.first());
        let mut needs: Vec<&Path> = command.map(Path::new).into_iter().collect();
        needs.extend(self.config.runtime.docker.runner.as_deref());
        needs.extend(self.config.agent.env_file.as_deref());
        needs.extend(socket.as_deref());
        let unit = Unit {
            program: &self.program,
            data: &self.data,
            config: self.config_file.as_deref(),
            scope: self.scope,
            user: self.user.as_ref().map(|user| user.name.as_str()),
            engine_group: self.engine_group.as_deref(),
            runtime: self.config.runtime.kind,
            stop_grace: self.config.policy.stop_grace.0,
            needs,
            packaged: false,
        };
        let text = unit.text().map_err(|why| {
            CommandError::new(code::USAGE, why, "name another with --data, --config or --run-as")
        })?;
        Ok(format!("{MARK}\n{text}"))
    }

    /// What the one who installs it should know.
    fn warnings(&self) -> Vec<String> {
        let mut all = Vec::new();
        let runtime = self.config.runtime.kind;
        if self.scope == Scope::System && self.user.is_none() && runtime == RuntimeKind::Process {
            all.push("agents of the process runtime will run as root; --run-as USER changes that".to_owned());
        }
        if runtime == RuntimeKind::Docker
            && self.config.runtime.docker.host.is_none()
            && std::env::var_os("DOCKER_HOST").is_some_and(|host| !host.is_empty())
        {
            all.push("the service does not see DOCKER_HOST; set runtime.docker.host".to_owned());
        }
        if !self.config.agent.env.is_empty() {
            let names = self.config.agent.env.join(", ");
            all.push(format!(
                "the service needs {names} in its environment: systemctl edit {UNIT}, or agent.env_file"
            ));
        }
        all
    }

    /// Makes the data folder, which a service of the system cannot make itself: all but it is read-only there.
    fn make_data(&self) -> Result<(), CommandError> {
        let data = &self.data;
        match fs::metadata(data) {
            Ok(found) => {
                let owner = self.user.as_ref().map_or(rustix::process::geteuid().as_raw(), |user| user.uid);
                if found.uid() == owner {
                    return Ok(());
                }
                let text = format!("{} belongs to user {}, not to {owner}", data.display(), found.uid());
                let hint = format!("chown -R {owner} {} if the service is to have it", data.display());
                return Err(CommandError::new(code::FAILURE, text, hint));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(cannot("look at", data, &error)),
        }
        if let Some(above) = data.parent() {
            fs::create_dir_all(above).map_err(|error| cannot("make", above, &error))?;
        }
        DirBuilder::new().mode(0o700).create(data).map_err(|error| cannot("make", data, &error))?;
        match &self.user {
            Some(user) => {
                chown(data, Some(user.uid), Some(user.gid)).map_err(|error| cannot("give away", data, &error))
            }
            None => Ok(()),
        }
    }
}

/// The group of an engine's socket; that of Debian's and Docker's own packages when it is not there yet.
fn group_of(socket: &Path) -> Option<String> {
    match fs::metadata(socket) {
        // Root's own group opens it to nobody else.
        Ok(found) if found.gid() == 0 => None,
        Ok(found) => entry("group", found.gid().to_string())?.into_iter().next(),
        Err(_) => entry("group", "docker")?.into_iter().next(),
    }
}
