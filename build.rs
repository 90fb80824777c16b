//! The soname of the shared library, and the version that the tools print.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    name_library();
    hide_dependencies();
    let version = var("CARGO_PKG_VERSION");
    let version = match commit() {
        Some(commit) => format!("{version} ({commit})"),
        None => version,
    };
    println!("cargo:rustc-env=YUAN_VERSION={version}");
}

/// Programs that are linked with the shared library ask for its series (`libyuan.so.0.1`), as they do with the one that cargo-c installs:
/// of the 0.x versions, a minor one promises nothing to the next. cargo-c, which builds with the feature `capi`, gives the name itself.
fn name_library() {
    if env::var_os("CARGO_FEATURE_CAPI").is_some() {
        return;
    }
    let (major, minor) = (var("CARGO_PKG_VERSION_MAJOR"), var("CARGO_PKG_VERSION_MINOR"));
    let series = if major == "0" { format!("0.{minor}") } else { major };
    match var("CARGO_CFG_TARGET_OS").as_str() {
        "linux" | "freebsd" | "netbsd" | "openbsd" | "dragonfly" => {
            println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libyuan.so.{series}");
        }
        "macos" => println!("cargo:rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libyuan.{series}.dylib"),
        _ => {}
    }
}

/// The shared library exports its own functions, and none that a dependency has for C programs, as llguidance has.
fn hide_dependencies() {
    if matches!(&*var("CARGO_CFG_TARGET_OS"), "linux" | "freebsd" | "netbsd" | "openbsd" | "dragonfly") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    }
}

/// The commit that is built: `YUAN_COMMIT` where somebody builds without a repository and knows it, else the repository's. Only a release
/// build asks the repository, so that a commit does not make all of a developer's builds stale.
fn commit() -> Option<String> {
    println!("cargo:rerun-if-env-changed=YUAN_COMMIT");
    if let Ok(commit) = env::var("YUAN_COMMIT") {
        return Some(commit).filter(|c| !c.is_empty());
    }
    let here = PathBuf::from(var("CARGO_MANIFEST_DIR"));
    // An unpacked source archive may lie in somebody else's repository.
    if var("PROFILE") != "release" || !here.join(".git").exists() {
        return None;
    }
    let commit = git(&here, &["rev-parse", "--short=10", "HEAD"])?;
    // HEAD names a branch, whose file has the commit, or, for all branches that did not move lately, packed-refs. cargo would take a file
    // that is not there for one that has changed.
    let branch = git(&here, &["rev-parse", "--symbolic-full-name", "HEAD"]).unwrap_or_default();
    for name in ["HEAD", "logs/HEAD", &branch, "packed-refs"].into_iter().filter(|n| !n.is_empty()) {
        let path = here.join(git(&here, &["rev-parse", "--git-path", name])?);
        if path.is_file() {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }
    Some(commit)
}

/// What git says, or nothing where it is not installed or fails.
fn git(folder: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("git").current_dir(folder).args(args).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    Some(said.trim().to_owned()).filter(|said| output.status.success() && !said.is_empty())
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
