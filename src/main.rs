//! The `lamplighter` binary: parse, call a command, map an error to an exit code and a hint.

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use lamplighter::base::printable::printable;
use lamplighter::cli::args::{Cli, Command};
use lamplighter::cli::chat::{ChatArgs, ChatError};
use lamplighter::cli::error::{CommandError, code};
use lamplighter::cli::{
    chat, demo, doctor, export, fixture, fork, image, init, journal, man, operate, replay, run, service,
    step, upgrade,
};
use lamplighter::containers::exec_child::exec_child;
use lamplighter::host::folder::DataFolder;

fn main() -> ExitCode {
    match command(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut err = std::io::stderr().lock();
            // Where nobody can be told, on a full disk for example, the exit code still tells.
            if !error.text.is_empty() {
                // Some of it is what agents said.
                drop(writeln!(err, "lamplighter: {}", printable(&error.text)));
            }
            if !error.hint.is_empty() {
                drop(writeln!(err, "  hint: {}", error.hint));
            }
            ExitCode::from(error.code)
        }
    }
}

fn command(cli: Cli) -> Result<(), CommandError> {
    let data = cli.data();
    match cli.command {
        Command::Run(args) => run::run(&data, &args),
        Command::Demo(args) => demo::demo(&args),
        Command::Chat(args) => talk(&data, &args),
        Command::Stop(args) => operate::stop(&data, &args),
        Command::Status(flag) => operate::status(&data, flag),
        Command::Init => init::init(&data),
        Command::Doctor(flag) => doctor::doctor(&data, flag),
        Command::Image(command) => image::image(&data, &command),
        Command::Service(args) => service::service(cli.data, data, &args),
        Command::Session(command) => operate::session(&data, command),
        Command::Message(command) => operate::message(&data, command),
        Command::Journal(command) => journal::journal(&data, command),
        Command::Replay(args) => replay::replay(&args),
        Command::Why(args) => replay::why(&data, &args),
        Command::State(args) => replay::state(&args),
        Command::UpgradeCheck(args) => upgrade::upgrade_check(&data, &args),
        Command::Fixture(command) => fixture::fixture(&data, &command),
        Command::Step(args) => step::step(&args),
        Command::Fork(args) => fork::fork(&args),
        Command::Export(args) => export::export(&args),
        Command::Completions { shell } => {
            // It panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "lamplighter", &mut script);
            Ok(std::io::stdout().write_all(&script)?)
        }
        Command::Man { out } => man::man(Cli::command(), &out),
        Command::ExecChild { parent, command } => {
            let error = exec_child(parent, &command);
            let program = command.first().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
            Err(CommandError::new(code::FAILURE, format!("cannot run {program:?}: {error}"), ""))
        }
    }
}

fn talk(data: &std::path::Path, args: &ChatArgs) -> Result<(), CommandError> {
    let folder = DataFolder::open(data)?;
    chat::run(args, &folder.chat_socket(), &folder.chat_history()).map_err(|error| {
        let code = match &error {
            ChatError::NoDaemon { .. } => code::UNAVAILABLE,
            ChatError::NothingSaid => code::USAGE,
            _ => code::FAILURE,
        };
        CommandError::new(code, &error, error.hint())
    })
}
