//! `lamplighter image`

use std::io::{self, Write};
use std::path::Path;

use clap::Subcommand;
use serde_json::json;

use super::args::JsonFlag;
use super::error::CommandError;
use super::table;
use crate::host::config::{Config, Overrides};
use crate::host::images;

/// What can be done with images.
#[derive(Subcommand, Debug)]
pub enum ImageCommand {
    /// Makes the image of the runner beside the daemon now, rather than at its first start.
    ///
    /// An image with agent command lines and tools is built by container/build.sh and named in runtime.docker.image.
    Build,
    /// Lists the images that daemons made of their runners.
    Ls(JsonFlag),
    /// Removes those that no container uses and no daemon with this configuration would.
    Prune,
}

/// Makes, lists or removes images.
///
/// # Errors
/// When the configuration cannot be read, or the engine is away or refuses.
pub fn image(data: &Path, command: &ImageCommand) -> Result<(), CommandError> {
    let env = |name: &str| std::env::var(name).ok();
    let config = Config::load(None, data, &env, &Overrides::default())?;
    let mut out = io::stdout().lock();
    match command {
        ImageCommand::Build => {
            let (name, is_new) = images::build(&config, &env)?;
            writeln!(out, "{} {name}", if is_new { "made" } else { "there is already" })?;
        }
        ImageCommand::Ls(flag) => {
            let images = images::list(&config, &env)?;
            if flag.json {
                let shown: Vec<_> = images
                    .iter()
                    .map(|it| {
                        json!({"name": it.name, "created": it.created, "bytes": it.bytes, "current": it.current})
                    })
                    .collect();
                writeln!(out, "{}", json!({ "images": shown }))?;
            } else {
                let rows: Vec<Vec<String>> = images
                    .iter()
                    .map(|it| {
                        let used = if it.current { "current" } else { "" };
                        vec![
                            it.name.clone(),
                            format!("{:.1} MB", it.bytes as f64 / 1e6),
                            it.created.clone(),
                            used.into(),
                        ]
                    })
                    .collect();
                table::write(&mut out, &["image", "size", "made", ""], &rows)?;
            }
        }
        ImageCommand::Prune => {
            for name in images::prune(&config, &env)? {
                writeln!(out, "removed {name}")?;
            }
        }
    }
    Ok(())
}
