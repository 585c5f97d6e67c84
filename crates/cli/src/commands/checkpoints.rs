//! `palisade checkpoints`: the checkpoints of this machine.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand, ValueEnum};
use palisade_api::Timestamp;
use palisade_checkpoint::object_store::ObjectStore;
use palisade_checkpoint::{
    Change, Checkpoint, Format, Id, ImportLimits, ImportOptions, Moved, Remote, Retention, Store, Version,
};
use serde_json::{Value, json};

use crate::cli::StateDir;
use crate::commands::{describe, text, time};
use crate::output::{Context as _, Outcome, Output, plain};

/// Where the checkpoints are.
#[derive(Debug, Args)]
pub(crate) struct StoreDir {
    /// The checkpoint store; otherwise that of `palisade up`. A worker's is `checkpoints` in its state directory.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    #[command(flatten)]
    state: StateDir,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ArchiveFormat {
    /// From which the same checkpoint can be imported.
    Own,
    /// A layer of an OCI image.
    Oci,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CheckpointsCommand {
    /// List checkpoints, the newest first.
    List {
        #[command(flatten)]
        store: StoreDir,
    },
    /// Show one checkpoint.
    Show {
        /// Its name, the beginning of it, or its label.
        checkpoint: String,
        #[command(flatten)]
        store: StoreDir,
    },
    /// Show what changed from one checkpoint to another, or from the base to one.
    Diff {
        /// A checkpoint: the later one when it is alone, otherwise the earlier one.
        checkpoint: String,
        /// The later checkpoint.
        other: Option<String>,
        /// The base's directory, to tell what was there before.
        #[arg(long, value_name = "DIR")]
        base: Option<PathBuf>,
        /// Write a patch instead of a table.
        #[arg(long)]
        patch: bool,
        #[command(flatten)]
        store: StoreDir,
    },
    /// Write a checkpoint as a tar archive.
    Export {
        /// The checkpoint.
        checkpoint: String,
        /// The file to write; it must not exist.
        file: PathBuf,
        /// What kind of archive.
        #[arg(long, value_enum, default_value = "own")]
        format: ArchiveFormat,
        #[command(flatten)]
        store: StoreDir,
    },
    /// Import a tar archive, compressed with gzip or not, as a checkpoint.
    Import {
        /// The archive.
        file: PathBuf,
        /// The name of the base that it is a layer over; archives of `export` name it themselves.
        #[arg(long)]
        base: Option<String>,
        /// What to call the checkpoint.
        #[arg(long)]
        label: Option<String>,
        #[command(flatten)]
        store: StoreDir,
    },
    /// Remove checkpoints that no rule keeps, and what then nothing needs. Those that a sandbox uses always stay.
    Prune {
        /// Keep the newest ones, so many.
        #[arg(long, value_name = "COUNT", default_value_t = 10)]
        keep_last: usize,
        /// Keep those that are younger than this many hours.
        #[arg(long, value_name = "HOURS")]
        keep_hours: Option<u64>,
        /// Remove those with a label as well.
        #[arg(long)]
        labelled: bool,
        #[command(flatten)]
        store: StoreDir,
    },
    /// Read everything again and name what is not whole.
    #[command(after_help = "Exit codes: 0 all whole; 1 something is not, or the store cannot be read.")]
    Verify {
        #[command(flatten)]
        store: StoreDir,
    },
    /// Send a checkpoint to another store: only what that does not have.
    Push {
        /// The checkpoint.
        checkpoint: String,
        /// The other store: a directory, or s3://BUCKET/PREFIX with the usual AWS_ variables.
        to: String,
        #[command(flatten)]
        store: StoreDir,
    },
    /// Fetch a checkpoint from another store.
    Pull {
        /// The checkpoint's whole name.
        checkpoint: String,
        /// The other store: a directory, or s3://BUCKET/PREFIX with the usual AWS_ variables.
        from: String,
        #[command(flatten)]
        store: StoreDir,
    },
}

pub(crate) async fn run(command: &CheckpointsCommand, out: Output) -> Outcome {
    match command {
        CheckpointsCommand::List { store } => list(&open(store)?, out)?,
        CheckpointsCommand::Show { checkpoint, store } => {
            let object = object(&find(&open(store)?, checkpoint)?);
            out.either(&object, describe(&object));
        }
        CheckpointsCommand::Diff { checkpoint, other, base, patch, store } => {
            diff(&open(store)?, checkpoint, other.as_deref(), base.as_deref(), *patch, out)?;
        }
        CheckpointsCommand::Export { checkpoint, file, format, store } => {
            export(&open(store)?, checkpoint, file, *format, out)?;
        }
        CheckpointsCommand::Import { file, base, label, store } => {
            let options = ImportOptions {
                base: base.clone(),
                created: now(),
                label: label.clone(),
                limits: ImportLimits::default(),
            };
            let what = || format!("cannot import {}", file.display());
            let archive = File::open(file).context(what())?;
            let checkpoint = open(store)?.import(archive, &options).context(what())?;
            out.either(&object(&checkpoint), checkpoint.id);
        }
        CheckpointsCommand::Prune { keep_last, keep_hours, labelled, store } => {
            let keep = Retention {
                live: in_use(store)?,
                last: *keep_last,
                labelled: !labelled,
                younger: keep_hours.map(|hours| Duration::from_secs(hours.saturating_mul(3600))),
                now: Some(now()),
            };
            let pruned = open(store)?.prune(&keep).context("cannot prune")?;
            out.either(
                &json!({"type": "checkpoints_pruned", "checkpoints": pruned.checkpoints, "layers": pruned.layers, "bytes": pruned.bytes}),
                format!("removed {} checkpoints and {}", pruned.checkpoints.len(), size(pruned.bytes)),
            );
        }
        CheckpointsCommand::Verify { store } => return verify(&open(store)?, out),
        CheckpointsCommand::Push { checkpoint, to, store } => {
            let store = open(store)?;
            let checkpoint = find(&store, checkpoint)?;
            let (objects, prefix) = other(to)?;
            let moved = store.push(&checkpoint.id, Remote::new(&*objects, &prefix)).await.context("cannot push")?;
            report(out, "checkpoint_pushed", &checkpoint, moved);
        }
        CheckpointsCommand::Pull { checkpoint, from, store } => {
            let id = checkpoint.parse().context("cannot pull")?;
            let (objects, prefix) = other(from)?;
            let pulled = open(store)?.pull(&id, Remote::new(&*objects, &prefix)).await;
            let (checkpoint, moved) = pulled.context("cannot pull")?;
            report(out, "checkpoint_pulled", &checkpoint, moved);
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::disallowed_methods, reason = "a command is where the present time comes in")]
fn now() -> SystemTime {
    SystemTime::now()
}

fn open(dir: &StoreDir) -> Outcome<Store> {
    let path = match &dir.store {
        Some(path) => path.clone(),
        // The worker of `palisade up` has its own place in the state directory.
        None => crate::local::make_state_dir(&dir.state.path()?)?.join("worker/checkpoints"),
    };
    Store::open(path).context("the checkpoint store cannot be opened")
}

/// What sessions of the workers of this state directory still need: of one that has it as its own, and of that of `palisade up`.
fn in_use(dir: &StoreDir) -> Outcome<BTreeSet<Id>> {
    let place = match &dir.store {
        Some(path) => path.parent().map(Path::to_owned),
        None => Some(dir.state.path()?),
    };
    let mut used = BTreeSet::new();
    for place in place.into_iter().flat_map(|place| [place.join("worker"), place]) {
        used.extend(palisade_worker::checkpoints_in_use(&place).context("it is not known what sessions need")?);
    }
    Ok(used)
}

fn find(store: &Store, text: &str) -> Outcome<Checkpoint> {
    store.find_named(text).context("cannot find the checkpoint")
}

fn other(address: &str) -> Outcome<(Box<dyn ObjectStore>, String)> {
    crate::client::install_crypto();
    palisade_checkpoint::open_objects(address).context(format!("the other store {address} cannot be opened"))
}

/// A checkpoint as an object for programs.
fn object(checkpoint: &Checkpoint) -> Value {
    let micros = i64::try_from(checkpoint.created_ms.saturating_mul(1000)).unwrap_or(i64::MAX);
    let counts = checkpoint.counts;
    json!({
        "id": checkpoint.id, "type": "checkpoint", "base": checkpoint.base, "parent": checkpoint.parent,
        "created_at": Timestamp::from_micros(micros), "label": checkpoint.label, "files": counts.files,
        "directories": counts.directories, "symlinks": counts.symlinks, "whiteouts": counts.whiteouts,
        "bytes": checkpoint.bytes,
    })
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{} KiB", bytes / 1024),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes / 1_048_576),
        _ => format!("{} GiB", bytes / 1_073_741_824),
    }
}

fn list(store: &Store, out: Output) -> Outcome<()> {
    let objects: Vec<Value> = store.list().context("cannot list checkpoints")?.iter().map(object).collect();
    objects.iter().for_each(|it| out.object(it));
    let row = |it: &Value| {
        let entries = ["files", "directories", "symlinks", "whiteouts"].iter().filter_map(|field| it[field].as_u64());
        vec![
            text(it, "id"),
            time(it, "created_at"),
            text(it, "label"),
            entries.sum::<u64>().to_string(),
            size(it["bytes"].as_u64().unwrap_or_default()),
        ]
    };
    out.table(&["id", "created", "label", "changes", "size"], &objects.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

fn diff(
    store: &Store,
    first: &str,
    second: Option<&str>,
    base: Option<&Path>,
    patch: bool,
    out: Output,
) -> Outcome<()> {
    let first = find(store, first)?.id;
    let (before, after) = match second {
        Some(second) => (Some(first), find(store, second)?.id),
        None => (None, first),
    };
    if patch {
        let patch = store.patch(before.as_ref(), &after, base).context("cannot compare")?;
        out.object(&json!({"type": "patch", "patch": String::from_utf8_lossy(&patch)}));
        out.piece(plain(&String::from_utf8_lossy(&patch)));
        return Ok(());
    }
    let changes = store.diff(before.as_ref(), &after, base).context("cannot compare")?;
    let side = |version: &Option<Version>| version.map_or_else(|| "-".to_owned(), |it| size(it.size));
    let row = |it: &Change| {
        let kind = json!(it.kind);
        vec![kind.as_str().unwrap_or_default().to_owned(), side(&it.before), side(&it.after), it.path.to_string()]
    };
    changes.iter().for_each(|it| out.object(&json!(it)));
    out.table(&["change", "before", "after", "path"], &changes.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

fn export(store: &Store, text: &str, path: &Path, format: ArchiveFormat, out: Output) -> Outcome<()> {
    let what = || format!("cannot export to {}", path.display());
    let id = find(store, text)?.id;
    // What is in a workspace is nobody else's.
    let file = File::options().write(true).create_new(true).mode(0o600).open(path).context(what())?;
    let format = match format {
        ArchiveFormat::Own => Format::Own,
        ArchiveFormat::Oci => Format::OciLayer,
    };
    let mut writer = std::io::BufWriter::with_capacity(1 << 20, file);
    // The export flushes what it writes to.
    if let Err(why) = store.export(&id, format, &mut writer) {
        // Half an archive is of no use.
        let _ = std::fs::remove_file(path);
        return Err(why).context(what());
    }
    let bytes = std::fs::metadata(path).map(|file| file.len()).unwrap_or_default();
    out.either(
        &json!({"type": "checkpoint_exported", "id": id, "path": path.display().to_string(), "bytes": bytes}),
        format!("wrote {} ({})", path.display(), size(bytes)),
    );
    Ok(())
}

fn verify(store: &Store, out: Output) -> Outcome {
    let verified = store.verify().context("cannot verify")?;
    let faults: Vec<Value> = verified
        .faults
        .iter()
        .map(|fault| json!({"type": "fault", "checkpoint": fault.checkpoint, "what": fault.error.to_string()}))
        .collect();
    for fault in &faults {
        out.either(fault, text(fault, "what"));
    }
    out.either(
        &json!({"type": "checkpoints_verified", "checkpoints": verified.checkpoints, "chunks": verified.chunks,
                "bytes": verified.bytes, "faults": faults.len()}),
        format!("{} checkpoints are whole: {} chunks, {}", verified.checkpoints, verified.chunks, size(verified.bytes)),
    );
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(out: Output, kind: &str, checkpoint: &Checkpoint, moved: Moved) {
    out.either(
        &json!({"type": kind, "id": checkpoint.id, "chunks": moved.chunks, "bytes": moved.bytes}),
        format!("{}: {} chunks, {}", checkpoint.id, moved.chunks, size(moved.bytes)),
    );
}
