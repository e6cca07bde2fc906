//! Names the build for `--version`, the journal's headers and `status`.
//!
//! `LAMPLIGHTER_BUILD` where it is set, by a packager for example; else what git says of the sources; else, without
//! git or outside of the project's own repository (a crate's archive, an image without `.git`), the version alone.
//! A development build is `dev`: to be linked anew at every commit would only cost time, and fixtures that it records
//! stay the same.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LAMPLIGHTER_BUILD");
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let told = std::env::var("LAMPLIGHTER_BUILD").ok().filter(|id| !id.trim().is_empty());
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let id = match told {
        Some(id) => Some(id.trim().to_owned()),
        None if is_release => described(),
        None => Some("dev".to_owned()),
    };
    let name = id.map_or_else(|| version.clone(), |id| format!("{version} ({id})"));
    println!("cargo:rustc-env=LAMPLIGHTER_BUILD_NAME={name}");
}

/// What git says of the sources; none where they are not a repository of their own.
fn described() -> Option<String> {
    let root = std::env::var("CARGO_MANIFEST_DIR").ok()?;
    let top = git(&root, &["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != Path::new(&root).canonicalize().ok()? {
        return None;
    }
    // Another commit is checked out, made, or packed; or the sources change, and with them whether they are a commit's.
    for name in ["HEAD", "logs/HEAD", "packed-refs"] {
        let path = git(&root, &["rev-parse", "--git-path", name])?;
        let path = Path::new(&root).join(path);
        if path.exists() {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }
    for name in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={name}");
    }
    git(&root, &["describe", "--always", "--dirty"])
}

fn git(root: &str, args: &[&str]) -> Option<String> {
    let out = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?.trim().to_owned();
    (out.status.success() && !text.is_empty()).then_some(text)
}
