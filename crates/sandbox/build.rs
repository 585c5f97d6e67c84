//! Builds the two programs that are embedded in this crate and executed inside sandboxes: the cell, and the hostile program
//! that the suite attacks them with.
//!
//! They are programs of their own, not the main binary under other names: the cell must be small, must start fast, and
//! shares nothing with the worker that an escape could use.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// Each program's package, and the variable that tells this crate where it was built.
const PROGRAMS: &[(&str, &str)] = &[("palisade-cell", "PALISADE_CELL"), ("palisade-hostile", "PALISADE_HOSTILE")];

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let target = env::var("TARGET").expect("cargo sets TARGET");
    for watched in ["cell", "hostile", "../../Cargo.lock"] {
        println!("cargo::rerun-if-changed={watched}");
    }
    let built = out.join("cell");
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo.current_dir(&manifest).args(["build", "--locked", "--profile", "cell", "--bins"]);
    for (package, _) in PROGRAMS {
        cargo.args(["--package", package]);
    }
    cargo
        .arg("--target")
        .arg(&target)
        .arg("--target-dir")
        .arg(&built)
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    // What the outer build says about itself is not true of the inner one.
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let ours =
            text.starts_with("CARGO_FEATURE_") || text.starts_with("CARGO_CFG_") || text.starts_with("CARGO_PROFILE_");
        if ours
            || matches!(
                text,
                "CARGO_ENCODED_RUSTFLAGS"
                    | "CARGO_BUILD_RUSTFLAGS"
                    | "CARGO_TARGET_DIR"
                    | "RUSTC_WRAPPER"
                    | "RUSTC_WORKSPACE_WRAPPER"
                    | "CLIPPY_ARGS"
                    | "CLIPPY_CONF_DIR"
                    | "__CARGO_DEFAULT_LIB_METADATA"
            )
        {
            cargo.env_remove(&name);
        }
    }
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "the cell and the hostile program could not be built: see the output above");
    for (package, variable) in PROGRAMS {
        println!("cargo::rustc-env={variable}={}", built.join(&target).join("cell").join(package).display());
    }
}
