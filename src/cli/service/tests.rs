use std::path::Path;

use super::unit::word;
use super::*;
use crate::base::Ms;

fn plain<'a>(scope: Scope, data: &'a Path) -> Unit<'a> {
    Unit {
        program: Path::new("/bin/true"),
        data,
        config: None,
        scope,
        user: None,
        engine_group: None,
        runtime: RuntimeKind::Process,
        stop_grace: Ms::secs(10),
        needs: Vec::new(),
        packaged: false,
    }
}

/// The unit of the Debian package.
fn packaged() -> Unit<'static> {
    Unit {
        program: Path::new("/usr/bin/lamplighter"),
        config: Some(Path::new("/etc/lamplighter/lamplighter.toml")),
        user: Some("lamplighter"),
        packaged: true,
        ..plain(Scope::System, Path::new(SYSTEM_DATA))
    }
}

fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

fn analyze(args: &[&str], path: &Path) -> Option<String> {
    let output = Command::new("systemd-analyze").args(args).arg(path).output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: systemd-analyze is not installed");
        return None;
    };
    Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn paths_are_written_so_that_systemd_reads_them_back() {
    let of = |path: &str| word(Path::new(path));
    assert_eq!(of("/srv/lamplighter").as_deref(), Ok("/srv/lamplighter"));
    assert_eq!(of("/a b/100%/$x\"y").as_deref(), Ok("\"/a b/100%%/$x\\\"y\""));
    // A quote in the middle of a word begins a quoted part there.
    assert_eq!(of("/it's").as_deref(), Ok("\"/it's\""));
    assert_eq!(of(r"/back\slash").as_deref(), Ok(r#""/back\\slash""#));
    assert!(of("/a\nExecStart=/bin/evil").is_err());
}

#[test]
fn variables_are_kept_from_the_command_line_only_where_systemd_replaces_them() {
    let text = plain(Scope::System, Path::new("/srv/$HOME 5%")).text().unwrap();
    assert_eq!(values(&text, "ExecStart"), ["/bin/true run --data \"/srv/$$HOME 5%%\""]);
    assert_eq!(values(&text, "ReadWritePaths"), ["\"/srv/$HOME 5%%\""]);
    assert_eq!(values(&text, "RequiresMountsFor"), ["\"/srv/$HOME 5%%\""]);
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("my 100% $data");
    let config = folder.path().join("it's.toml");
    let root = Some("root");
    let all = [
        plain(Scope::System, &data),
        plain(Scope::User, &data),
        Unit { runtime: RuntimeKind::Docker, user: root, engine_group: root, ..plain(Scope::System, &data) },
        Unit { config: Some(&config), ..plain(Scope::User, &data) },
    ];
    for unit in all {
        let text = unit.text().unwrap();
        assert!(text.contains("run --data \""), "{text}");
        assert_eq!(text.contains("ProtectSystem=strict"), unit.scope == Scope::System);
        let path = folder.path().join(UNIT);
        fs::write(&path, &text).unwrap();
        let scope = if unit.scope == Scope::User { "--user" } else { "--system" };
        let Some(said) = analyze(&[scope, "--man=no", "verify"], &path) else { return };
        // Before systemd 254 these have no meaning yet, and are passed over.
        let is_new =
            |line: &str| ["'RestartSteps'", "'RestartMaxDelaySec'"].iter().any(|key| line.contains(key));
        let ours: Vec<&str> = said.lines().filter(|line| line.contains(UNIT) && !is_new(line)).collect();
        assert!(ours.is_empty(), "{}\n{text}", ours.join("\n"));
    }
}

#[test]
fn systemd_reads_back_the_paths_that_were_written() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("a b'c\"d 5%");
    let units = folder.path().join("units");
    fs::create_dir(&units).unwrap();
    let path = units.join(UNIT);
    // What systemd cannot find it names, as it has read it.
    let gone = data.join("gone's 5% $x");
    fs::write(&path, Unit { program: &gone, ..plain(Scope::System, &data) }.text().unwrap()).unwrap();
    let Some(said) = analyze(&["--man=no", "verify"], &path) else { return };
    assert!(said.contains(&gone.display().to_string()), "{said}");
}

#[test]
fn a_service_of_the_system_is_not_exposed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(UNIT);
    let data = Path::new("/var/lib/lamplighter");
    let system = plain(Scope::System, data);
    let docker = Unit { runtime: RuntimeKind::Docker, user: Some("nobody"), ..plain(Scope::System, data) };
    // Of 10, as systemd 252 counts; what is measured stands a little below.
    for (unit, most) in [(system, "5.5"), (packaged(), "4.0"), (docker, "2.5")] {
        fs::write(&path, unit.text().unwrap()).unwrap();
        let threshold = format!("--threshold={}", most.replace('.', ""));
        let Some(said) = analyze(&["security", "--offline=true", "--no-pager", &threshold], &path) else {
            return;
        };
        let exposure = said.lines().find(|line| line.contains("Overall exposure level"));
        let number =
            exposure.and_then(|line| line.split(": ").nth(1)?.split(' ').next()?.parse::<f64>().ok());
        let number = number.unwrap_or_else(|| panic!("no figure in:\n{said}"));
        eprintln!("exposure of {:?} {:?}: {number}", unit.user, unit.runtime);
        assert!(number <= most.parse().unwrap(), "{said}");
    }
}

#[test]
fn a_stop_has_longer_than_the_grace_and_only_a_wrong_configuration_is_not_tried_again() {
    let data = Path::new("/srv/data");
    for scope in [Scope::System, Scope::User] {
        let text = Unit { stop_grace: Ms(90_500), ..plain(scope, data) }.text().unwrap();
        assert_eq!(values(&text, "TimeoutStopSec"), ["222"]);
        assert_eq!(values(&text, "KillMode"), ["mixed"]);
        assert_eq!(values(&text, "Restart"), ["on-failure"]);
        assert_eq!(values(&text, "RestartPreventExitStatus"), [code::USAGE.to_string()]);
        assert_eq!(values(&text, "StartLimitIntervalSec"), ["0"], "it is given up for good after some tries");
        assert_eq!(values(&text, "RestartSec"), ["10"]);
        assert_eq!(values(&text, "RestartMaxDelaySec"), ["5min"]);
        let steps: Vec<u32> = values(&text, "RestartSteps").iter().map(|it| it.parse().unwrap()).collect();
        assert!(matches!(steps[..], [steps] if steps > 0), "{steps:?}");
        assert!(values(&text, "After")[0].contains("docker.service"), "{text}");
        assert_eq!(values(&text, "Type"), ["notify"]);
        assert_eq!(values(&text, "NoNewPrivileges"), ["yes"]);
    }
}

#[test]
fn only_what_needs_it_sees_homes_capabilities_and_the_engines_group() {
    let text = |unit: Unit<'_>| unit.text().unwrap();
    let data = Path::new("/srv/data");
    let of_root = text(plain(Scope::System, data));
    assert_eq!(values(&of_root, "ProtectHome"), ["yes"]);
    assert!(values(&of_root, "CapabilityBoundingSet")[0].contains("CAP_CHOWN"));
    assert!(values(&of_root, "User").is_empty() && values(&of_root, "SupplementaryGroups").is_empty());
    let needs = vec![Path::new("/home/me/agent.env")];
    assert_eq!(values(&text(Unit { needs, ..plain(Scope::System, data) }), "ProtectHome"), ["read-only"]);
    let in_a_home = Path::new("/root/.local/share/lamplighter");
    assert_eq!(values(&text(plain(Scope::System, in_a_home)), "ProtectHome"), ["read-only"]);
    let docker = Unit {
        runtime: RuntimeKind::Docker,
        user: Some("lamp"),
        engine_group: Some("docker"),
        ..plain(Scope::System, data)
    };
    let docker = text(docker);
    assert_eq!(values(&docker, "User"), ["lamp"]);
    assert_eq!(values(&docker, "SupplementaryGroups"), ["docker"]);
    assert_eq!(values(&docker, "CapabilityBoundingSet"), [""]);
    let evil = Unit { user: Some("x\nExecStartPre=/bin/evil"), ..plain(Scope::System, data) };
    assert!(evil.text().is_err());
}

#[test]
fn the_package_has_the_unit_that_this_build_writes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/lamplighter.service");
    let head =
        "# Made from src/cli/service/unit.rs; UPDATE=1 cargo test --lib cli::service writes it anew.\n";
    let text = format!("{head}{}", packaged().text().unwrap());
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn a_unit_of_somebody_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(UNIT);
    assert!(refuse_a_foreign(&path).is_ok());
    assert!(refuse_a_packaged(&[folder.path()]).is_ok());
    fs::write(&path, "[Unit]\n").unwrap();
    assert!(refuse_a_foreign(&path).is_err_and(|error| error.text.contains("was left as it is")));
    assert!(refuse_a_packaged(&[folder.path()]).is_err_and(|error| error.hint.contains("systemctl")));
    fs::write(&path, format!("{MARK}\n[Unit]\n")).unwrap();
    assert!(refuse_a_foreign(&path).is_ok());
}

#[test]
fn only_root_changes_a_service_of_the_system() {
    assert!(refuse_a_stranger(Scope::System, true).is_ok());
    assert!(refuse_a_stranger(Scope::User, false).is_ok());
    let refused = refuse_a_stranger(Scope::System, false);
    assert!(refused.is_err_and(|error| error.hint.contains("sudo")));
}

#[test]
fn the_installer_is_told_what_the_service_will_lack() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lamplighter.toml");
    let plan = |text: &str, scope| {
        fs::write(&file, text).unwrap();
        Plan::of(scope, folder.path(), &UnitArgs::default()).unwrap().warnings()
    };
    assert!(plan("", Scope::User).is_empty());
    assert!(plan("", Scope::System)[0].contains("--run-as"));
    let told = plan("[agent]\nenv = [\"A_KEY\"]\n", Scope::User);
    assert!(told.len() == 1 && told[0].contains("A_KEY"), "{told:?}");
    fs::write(&file, "[agent]\nnmae = 1\n").unwrap();
    assert!(
        Plan::of(Scope::User, folder.path(), &UnitArgs::default()).is_err_and(|it| it.code == code::USAGE)
    );
    let nobody = UnitArgs { run_as: Some("no-such-user".into()), ..UnitArgs::default() };
    fs::write(&file, "").unwrap();
    let refused = Plan::of(Scope::System, folder.path(), &nobody).map(drop);
    assert!(refused.is_err_and(|it| it.hint.contains("useradd")));
    assert!(Plan::of(Scope::User, folder.path(), &nobody).is_err());
}
