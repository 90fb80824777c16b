//! `include/yuan.h` is what `src/capi` says, and the interface changes only with its version.
//!
//! `YUAN_BLESS=1 cargo test --test header` writes both files anew; it refuses a changed interface under the old version.

mod common;

use std::fs;

use yuan::capi::YUAN_ABI_VERSION;

fn header() -> String {
    let sources = common::root().join("src/capi");
    let order = [
        "border",
        "status",
        "handles",
        "callback",
        "log",
        "engine",
        "describe",
        "text",
        "session_options",
        "session",
        "sampler",
        "generate",
        "score",
        "draft",
        "grammar",
        "save",
    ];
    let config = cbindgen::Config::from_file(common::root().join("cbindgen.toml")).expect("cbindgen.toml");
    let builder = order.iter().fold(cbindgen::Builder::new().with_config(config), |builder, file| {
        builder.with_src(sources.join(format!("{file}.rs")))
    });
    let mut text = Vec::new();
    builder.generate().expect("the sources parse").write(&mut text);
    String::from_utf8(text).unwrap()
}

/// The header without its comments: names, types, values and the order of arguments, which is all that a compiled program relies on.
fn interface(header: &str) -> String {
    let mut code = String::new();
    let mut rest = header;
    while let Some((before, comment)) = rest.split_once("/*") {
        code.push_str(before);
        rest = comment.split_once("*/").expect("comments end").1;
    }
    code.push_str(rest);
    // One declaration a line, however the generator breaks them.
    let mut out = String::new();
    let line = |l: &str| l.split("//").next().unwrap_or("").split_whitespace().collect::<Vec<_>>().join(" ");
    for line in code.lines().map(line).filter(|l| !l.is_empty()) {
        let directive = line.starts_with('#');
        if directive && !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        } else if !out.is_empty() && !out.ends_with('\n') {
            out.push(' ');
        }
        out.push_str(&line);
        if directive || line.ends_with(';') {
            out.push('\n');
        }
    }
    out
}

fn blessed(file: &std::path::Path, text: &str) -> bool {
    let bless = std::env::var_os("YUAN_BLESS").is_some();
    if bless {
        fs::write(file, text).unwrap();
    }
    bless
}

#[test]
fn the_header_is_current() {
    let file = common::root().join("include/yuan.h");
    let made = header();
    if !blessed(&file, &made) {
        let found = fs::read_to_string(&file).expect("include/yuan.h");
        assert!(
            found == made,
            "include/yuan.h is not what src/capi says: run YUAN_BLESS=1 cargo test --test header"
        );
    }
}

#[test]
fn the_interface_changes_only_with_its_version() {
    let file = common::root().join("tests/fixtures/yuan.abi");
    let made = interface(&header());
    let found = fs::read_to_string(&file).unwrap_or_default();
    if found == made {
        return;
    }
    let version = format!("#define YUAN_ABI_VERSION {YUAN_ABI_VERSION}\n");
    assert!(
        !found.contains(&version),
        "the interface is another than that of version {YUAN_ABI_VERSION} in tests/fixtures/yuan.abi: raise YUAN_ABI_VERSION \
         (src/capi/border.rs) and run YUAN_BLESS=1 cargo test --test header"
    );
    assert!(
        blessed(&file, &made),
        "tests/fixtures/yuan.abi is of another version: run YUAN_BLESS=1 cargo test --test header"
    );
}

#[test]
fn cmake_knows_the_version() {
    let file = fs::read_to_string(common::root().join("cmake/yuanConfigVersion.cmake")).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert!(file.contains(&format!("set(PACKAGE_VERSION \"{version}\")")), "{version} in {file}");
}

/// The shared library that this test was built with.
#[cfg(all(target_os = "linux", not(feature = "cuda-shim")))]
fn library() -> std::path::PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    deps.join(format!("{}yuan{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX))
}

// A build for tests of the GPU also exports the borders of the emulator's memory.
#[cfg(all(target_os = "linux", not(feature = "cuda-shim")))]
#[test]
fn the_library_exports_the_header_and_nothing_else() {
    let output = match std::process::Command::new("nm").args(["-D", "--defined-only"]).arg(library()).output()
    {
        Ok(output) => output,
        Err(e) => return common::skip(format!("no nm: {e}")),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut exported: Vec<&str> = text.lines().filter_map(|l| l.split_whitespace().nth(2)).collect();
    exported.sort_unstable();
    let interface = interface(&header());
    let mut declared: Vec<&str> = interface
        .lines()
        .filter_map(|line| line.split_once('('))
        .filter_map(|(before, _)| before.split([' ', '*']).next_back())
        .filter(|name| name.starts_with("yuan_"))
        .collect();
    declared.sort_unstable();
    assert_eq!(exported, declared);
}

/// Compiles a program of one line as `language` and says what the compiler complains about; `None` where there is no compiler.
#[cfg(unix)]
fn compiled(compiler: &str, standard: &str, file: &str) -> Option<String> {
    let folder = common::folder();
    let source = folder.path().join(file);
    fs::write(&source, "#include \"yuan.h\"\n#include <yuan.h>\nint main(void) { return yuan_abi_version() != YUAN_ABI_VERSION; }\n").unwrap();
    let mut command = std::process::Command::new(compiler);
    command.args([standard, "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", "-I"]);
    let output = command.arg(common::root().join("include")).arg(&source).output().ok()?;
    assert!(output.status.success(), "{compiler} {standard}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stderr).into_owned())
}

// Of the compilers for Windows, `.ci/run windows` has none under these names.
#[cfg(unix)]
#[test]
fn the_header_is_c99_and_cpp11() {
    for (compiler, standard, file) in [
        ("cc", "-std=c99", "a.c"),
        ("cc", "-std=c17", "a.c"),
        ("c++", "-std=c++11", "a.cc"),
        ("c++", "-std=c++20", "a.cc"),
    ] {
        if compiled(compiler, standard, file).is_none() {
            common::skip(format!("no {compiler}"));
        }
    }
}
