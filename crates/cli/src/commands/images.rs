//! `palisade image`: what sandboxes may have as their root file system.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use palisade_engine::{Clock as _, SystemClock};
use palisade_image::{
    CredentialSources, Image, Keep, Ownership, Policy, PublicKey, Pulled, Reference, Registries, RegistryPattern, Store,
};
use serde_json::{Value, json};

use crate::cli::StateDir;
use crate::commands::{describe, text, time};
use crate::local;
use crate::output::{Context as _, Failure, Outcome, Output, note, plain};

const DAY_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

#[derive(Debug, Subcommand)]
pub(crate) enum ImagesCommand {
    /// Get an image from a registry, a layout or an archive, and print the digest to name it by.
    ///
    /// Credentials are taken from where docker and podman keep them.
    Pull(PullArgs),
    /// Get the image of a file or directory: an OCI layout, or what `docker save` or `podman save` wrote.
    Import(ImportArgs),
    /// List the images of this machine.
    List {
        #[command(flatten)]
        state: StateDir,
    },
    /// Show what is known of an image, and how its author meant it to be run.
    Inspect {
        /// The image: its digest, or what it was pulled as.
        image: String,
        #[command(flatten)]
        state: StateDir,
    },
    /// Remove images that are not used, and what belonged to them alone. What a sandbox uses stays.
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// The image: [REGISTRY/]REPOSITORY[:TAG][@DIGEST], oci:PATH, oci-archive:FILE or docker-archive:FILE.
    image: String,
    /// Refuse registries other than this one, or this part of one; may be repeated.
    #[arg(long, value_name = "REGISTRY[/REPOSITORY]")]
    allow_registry: Vec<String>,
    /// A registry to speak to without TLS; may be repeated. Those on loopback need not be named.
    #[arg(long, value_name = "REGISTRY")]
    insecure_registry: Vec<String>,
    /// Certificates (PEM) to trust besides the system's.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    #[command(flatten)]
    keys: Keys,
    #[command(flatten)]
    state: StateDir,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The file or directory.
    path: PathBuf,
    #[command(flatten)]
    keys: Keys,
    #[command(flatten)]
    state: StateDir,
}

#[derive(Debug, Args)]
struct Keys {
    /// A cosign public key (PEM); the image must be signed by one of those given.
    #[arg(long, value_name = "FILE")]
    cosign_key: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Remove what was not used for this many days.
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    unused_days: u16,
    /// Remove every image that is not in use now.
    #[arg(long, conflicts_with = "unused_days")]
    all: bool,
    #[command(flatten)]
    state: StateDir,
}

impl Keys {
    fn read(&self) -> Outcome<Vec<PublicKey>> {
        self.cosign_key.iter().map(|path| PublicKey::read(path).context("the signature cannot be checked")).collect()
    }
}

pub(crate) async fn run(command: &ImagesCommand, out: Output) -> Outcome {
    match command {
        ImagesCommand::Pull(args) => pull(args, out).await?,
        ImagesCommand::Import(args) => {
            let store = open(&args.state)?;
            let policy = Policy { require_signature: args.keys.read()?, ..Policy::default() };
            let pulled = store.import(args.path.clone(), &policy, SystemClock::default().now()).await;
            show(&pulled.context(format!("cannot import {}", args.path.display()))?, out);
        }
        ImagesCommand::List { state } => list(&open(state)?, out)?,
        ImagesCommand::Inspect { image, state } => inspect(&open(state)?, image, out)?,
        ImagesCommand::Prune(args) => prune(args, out)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The store of a state directory.
fn open(state: &StateDir) -> Outcome<Store> {
    let state_dir = local::make_state_dir(&state.path()?)?;
    Store::open(state_dir.join("images")).context("the images of this machine cannot be used")
}

fn reference(text: &str) -> Outcome<Reference> {
    text.parse().context("the image cannot be understood")
}

async fn pull(args: &PullArgs, out: Output) -> Outcome<()> {
    let reference = reference(&args.image)?;
    let patterns: Result<Vec<RegistryPattern>, _> = args.allow_registry.iter().map(|it| it.parse()).collect();
    let patterns = patterns.context("--allow-registry cannot be understood")?;
    let policy = Policy {
        registries: if patterns.is_empty() { Registries::Any } else { Registries::Only(patterns) },
        insecure: args.insecure_registry.clone(),
        require_signature: args.keys.read()?,
        ca_file: args.ca_file.clone(),
        ..Policy::default()
    };
    let credentials = CredentialSources::usual(|name| std::env::var_os(name));
    let store = open(&args.state)?;
    let pulled = store.pull(&reference, &policy, &credentials, SystemClock::default().now()).await;
    show(&pulled.context(format!("cannot pull {reference}"))?, out);
    Ok(())
}

/// Prints the name that a run may use, and on standard error what else is worth knowing.
fn show(pulled: &Pulled, out: Output) {
    let image = &pulled.image;
    let pinned = pulled.pinned.to_string();
    let mut object = object(image);
    object["pinned"] = json!(pinned);
    object["new_layers"] = json!(pulled.new_layers);
    object["moved_from"] = json!(pulled.moved_from);
    out.either(&object, plain(&pinned));
    if let Some(before) = pulled.moved_from {
        note(format!("{} meant {before} before", plain(image.reference())));
    }
    if !out.is_json() {
        image.notes().iter().for_each(|line| note(plain(line)));
    }
}

fn object(image: &Image) -> Value {
    let ownership = match image.ownership() {
        Ownership::Kept => "kept",
        Ownership::Flattened => "flattened",
    };
    json!({
        "type": "image", "digest": image.digest(), "reference": image.reference(), "manifest": image.manifest(),
        "platform": image.platform(), "pulled_at": image.pulled_at(), "layers": image.layers().len(),
        "entries": image.entries(), "bytes": image.bytes(), "ownership": ownership, "signed_by": image.signed_by(),
        "notes": image.notes(),
    })
}

fn list(store: &Store, out: Output) -> Outcome<()> {
    let images = store.images().context("cannot list images")?;
    let mut rows = Vec::new();
    for image in &images {
        let object = object(image);
        out.object(&object);
        rows.push(vec![
            text(&object, "digest"),
            size(image.bytes()),
            time(&object, "pulled_at"),
            plain(image.reference()).into_owned(),
        ]);
    }
    out.table(&["digest", "size", "pulled", "pulled as"], &rows);
    Ok(())
}

fn inspect(store: &Store, name: &str, out: Output) -> Outcome<()> {
    // Looking at an image runs nothing, so a tag and any registry will do.
    let policy = Policy { registries: Registries::Any, allow_mutable: true, ..Policy::default() };
    let image = store.resolve(&reference(name)?, &policy).context(format!("cannot show {name}"))?;
    let mut object = object(&image);
    object["references"] = json!(store.references(image.digest()).context("cannot read the names of images")?);
    object["config"] = json!(image.config());
    object["directories"] = json!(image.layers());
    out.either(&object, describe(&object));
    Ok(())
}

fn prune(args: &PruneArgs, out: Output) -> Outcome<()> {
    let store = open(&args.state)?;
    let now = SystemClock::default().now();
    let since = now.plus(-i64::from(args.unused_days) * DAY_MICROS);
    let keep = Keep { named: false, used_since: (!args.all).then_some(since) };
    let pruned = store.prune(&keep, &[]).map_err(|why| Failure::new("cannot prune images").why(why))?;
    let mut object = json!(pruned);
    object["type"] = json!("images_pruned");
    let (images, layers, in_use) = (pruned.images.len(), pruned.layers.len(), pruned.in_use.len());
    let freed = size(pruned.bytes);
    out.either(&object, format!("removed {images} images and {layers} layers, {freed}; {in_use} more are in use"));
    Ok(())
}

/// A size for people.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes / 1024),
        0x10_0000..0x4000_0000 => format!("{} MiB", bytes / 0x10_0000),
        _ => format!("{}.{} GiB", bytes / 0x4000_0000, bytes % 0x4000_0000 * 10 / 0x4000_0000),
    }
}
