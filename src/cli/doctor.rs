//! `lamplighter doctor`

use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use super::args::JsonFlag;
use super::error::{CommandError, code};
use super::table;
use crate::host::config::{Config, Overrides};
use crate::host::doctor::{self, Grade};

/// Says what a daemon would find here.
///
/// # Errors
/// When the configuration cannot be read; with exit code 1, without a word more, when something stands in the way.
pub fn doctor(data: &Path, flag: JsonFlag) -> Result<(), CommandError> {
    let env = |name: &str| std::env::var(name).ok();
    let config = Config::load(None, data, &env, &Overrides::default())?;
    let findings = doctor::examine(data, &config, &env);
    let worst = findings.iter().map(|finding| finding.grade).max().unwrap_or(Grade::Good);
    let mut out = io::stdout().lock();
    if flag.json {
        let findings: Vec<_> = findings
            .iter()
            .map(|it| json!({"topic": it.topic, "grade": it.grade.word(), "found": it.found, "advice": it.advice}))
            .collect();
        writeln!(out, "{}", json!({ "worst": worst.word(), "findings": findings }))?;
    } else {
        let rows: Vec<Vec<String>> = findings
            .iter()
            .map(|it| vec![it.grade.word().to_owned(), it.topic.to_owned(), it.found.clone()])
            .collect();
        table::write(&mut out, &["", "what", "found"], &rows)?;
        for finding in findings.iter().filter(|finding| !finding.advice.is_empty()) {
            writeln!(out, "\n{}: {}\n  {}", finding.topic, finding.found, finding.advice)?;
        }
    }
    if worst == Grade::Bad { Err(CommandError::silent(code::FAILURE)) } else { Ok(()) }
}
