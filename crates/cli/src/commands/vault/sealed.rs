//! The sealed file: made, filled, listed, and encrypted to another key.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use palisade_vault::{Key, Origin, SealedEntry, SealedError, SealedFile, Surroundings};
use serde_json::json;

use super::{DONE, NoValue, value};
use crate::cli::StateDir;
use crate::local;
use crate::output::{Context as _, Failure, Outcome, Output, note};

/// Where the file and its key are.
#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    /// The sealed file [default: vault.age in the state directory].
    #[arg(long, value_name = "FILE", env = "PALISADE_VAULT_FILE")]
    file: Option<PathBuf>,
    /// Where its key is: a path, env:VARIABLE, mounted:/PATH, credential:NAME of systemd, or program:/PATH that prints it [default: vault.key beside the file].
    #[arg(long, value_name = "KEY", env = "PALISADE_VAULT_KEY", hide_env_values = true)]
    key: Option<String>,
    #[command(flatten)]
    state: StateDir,
}

/// Make a sealed file, and a key for it where there is none.
#[derive(Debug, Args)]
#[command(
    after_help = "Whoever has both files can read every secret. Keep the key where copies of the file do not go: on another \
                        file system, or sealed to this machine with `systemd-creds encrypt` (docs/vault.md)."
)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    place: Place,
}

/// A secret and where its value comes from.
#[derive(Debug, Args)]
#[command(
    after_help = "The value is read from standard input, without the one line end at its end; at a terminal it is asked for \
                        and not shown. It is never given on the command line, where every process could read it.\n\
                        \x20 pass show github | palisade vault add github"
)]
pub(crate) struct PutArgs {
    /// The secret's name; references call it sealed:NAME.
    name: String,
    #[command(flatten)]
    no_value: NoValue,
    /// Read the value from this file.
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

/// Remove a secret from the sealed file.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// The secret's name.
    name: String,
    #[command(flatten)]
    place: Place,
}

/// Encrypt the sealed file to a new key.
#[derive(Debug, Args)]
#[command(
    after_help = "Without --new-key a new key takes the old one's place. Copies of the file that were made before still open \
                        with the old key: if others may have that, rotate the secrets too."
)]
pub(crate) struct RekeyArgs {
    /// The new key, named in the same way; at a path one is made if there is none. The old one stays.
    #[arg(long, value_name = "KEY")]
    new_key: Option<String>,
    #[command(flatten)]
    place: Place,
}

/// The file and its key as they are meant.
struct Meant {
    file: PathBuf,
    key: Origin,
}

impl Place {
    fn meant(&self) -> Outcome<Meant> {
        let file = match &self.file {
            Some(file) => absolute(file)?,
            None => self.state.path().and_then(|path| absolute(&path))?.join("vault.age"),
        };
        let key = match &self.key {
            Some(key) => origin("--key", key)?,
            None => Origin::File(file.with_file_name("vault.key")),
        };
        Ok(Meant { file, key })
    }
}

fn absolute(path: &Path) -> Outcome<PathBuf> {
    std::path::absolute(path).map_err(|why| Failure::new(format!("{} is no path", path.display())).why(why))
}

/// Where a key is. Anything without one of the known words before a colon is a path.
fn origin(option: &str, text: &str) -> Outcome<Origin> {
    if text.to_ascii_uppercase().contains("AGE-SECRET-KEY-") {
        return Err(Failure::new(format!("{option} takes the place of a key, not a key"))
            .why("every process of this machine can read what stands on a command line, and shells keep it in their history")
            .fix("put the key into a file of mode 0600 and name that; replace this one with `palisade vault rekey`"));
    }
    if ["env:", "file:", "mounted:", "credential:", "program:"].iter().any(|word| text.starts_with(word)) {
        return text.parse().context(format!("{option} cannot be used"));
    }
    absolute(Path::new(text)).map(Origin::File)
}

/// What failed, with what the file system or the file says.
fn failed(what: String, error: &SealedError) -> Failure {
    let failure = Failure::new(what).why(error);
    match error {
        SealedError::Io { error, .. } if error.kind() == std::io::ErrorKind::NotFound => {
            failure.fix("make one with `palisade vault init`, or name yours with --file and --key")
        }
        _ => failure,
    }
}

impl Meant {
    fn open(&self, what: impl Into<String>) -> Outcome<(SealedFile, Key)> {
        let what = what.into();
        if !self.file.exists() {
            return Err(Failure::new(what)
                .why(format!("there is no sealed file at {}", self.file.display()))
                .fix("make one with `palisade vault init`, or name yours with --file"));
        }
        let key = Key::read(&self.key, &Surroundings::of_process()).map_err(|error| failed(what, &error))?;
        Ok((SealedFile::at(&self.file), key))
    }
}

pub(super) fn init(args: &InitArgs, out: Output) -> Outcome {
    let what = "the sealed file cannot be made";
    let meant = args.place.meant()?;
    if args.place.file.is_none() {
        local::make_state_dir(&args.place.state.path()?)?;
    }
    if meant.file.exists() {
        return Err(failed(what.to_owned(), &SealedError::Exists(meant.file)));
    }
    let key = key(&meant.key).map_err(|error| failed(what.to_owned(), &error))?;
    SealedFile::create(&meant.file, &key).map_err(|error| failed(what.to_owned(), &error))?;
    let file = meant.file.display().to_string();
    let told = json!({
        "type": "vault_made", "file": file, "key": meant.key.to_string(), "recipient": key.recipient(),
    });
    let text = format!(
        "made {file}\nits key is {}\n\nIn the file of credentials, under `sources:`\n\n  sealed: {{file: {file}, key: '{}'}}",
        meant.key, meant.key
    );
    out.either(&told, text);
    Ok(DONE)
}

/// The key that is there, or a new one where a file may be made.
fn key(origin: &Origin) -> Result<Key, SealedError> {
    match origin {
        Origin::File(path) if !path.exists() => Key::generate(path),
        origin => Key::read(origin, &Surroundings::of_process()),
    }
}

pub(super) fn add(args: &PutArgs, out: Output) -> Outcome {
    put(args, out, "add", "added", SealedFile::add)
}

pub(super) fn rotate(args: &PutArgs, out: Output) -> Outcome {
    put(args, out, "rotate", "rotated", SealedFile::rotate)
}

type Put = fn(&SealedFile, &Key, &str, palisade_api::Secret, SystemTime) -> Result<(), SealedError>;

fn put(args: &PutArgs, out: Output, verb: &str, done: &str, put: Put) -> Outcome {
    args.no_value.check()?;
    name(&args.name, verb)?;
    let (name, what) = (&args.name, format!("cannot {verb} {}", args.name));
    // Whether it can be done is known before anybody is asked for a secret.
    let (file, key) = args.place.meant()?.open(&*what)?;
    let there = file.list(&key).map_err(|error| failed(what.clone(), &error))?.iter().any(|entry| entry.name == *name);
    match (verb, there) {
        ("add", true) => {
            return Err(Failure::new(what)
                .why("a secret of that name is there already")
                .fix(format!("`palisade vault rotate {name}` gives it a new value")));
        }
        ("rotate", false) => return Err(missing(what)),
        _ => {}
    }
    let value = value::read(name, args.from_file.as_deref())?;
    put(&file, &key, name, value, now()).map_err(|error| failed(what, &error))?;
    let reference = format!("sealed:{name}");
    let told = json!({"type": format!("secret_{done}"), "name": name, "reference": reference});
    out.either(&told, format!("{done} {name}; references call it {reference}"));
    Ok(DONE)
}

/// Refuses what is no name without repeating it: somebody may have put the value in its place.
fn name(name: &str, verb: &str) -> Outcome<()> {
    if format!("sealed:{name}").parse::<palisade_vault::Reference>().is_ok() && name.len() <= 128 {
        return Ok(());
    }
    Err(Failure::new(format!("cannot {verb} a secret of that name"))
        .why(SealedError::Name)
        .fix("give a name here, and the value on standard input, at the prompt, or with --from-file"))
}

fn missing(what: String) -> Failure {
    Failure::new(what).why("there is no secret of that name").fix("`palisade vault list` shows the names")
}

pub(super) fn list(place: &Place, out: Output) -> Outcome {
    let what = "cannot list the secrets";
    let (file, key) = place.meant()?.open(what)?;
    let entries = file.list(&key).map_err(|error| failed(what.to_owned(), &error))?;
    for entry in &entries {
        out.object(&json!({
            "type": "secret", "name": entry.name, "reference": format!("sealed:{}", entry.name),
            "created_at": entry.created, "changed_at": entry.changed,
        }));
    }
    let row = |entry: &SealedEntry| vec![entry.name.clone(), entry.created.clone(), entry.changed.clone()];
    out.table(&["name", "created", "changed"], &entries.iter().map(row).collect::<Vec<_>>());
    Ok(DONE)
}

pub(super) fn remove(args: &RemoveArgs, out: Output) -> Outcome {
    name(&args.name, "remove")?;
    let what = format!("cannot remove {}", args.name);
    let (file, key) = args.place.meant()?.open(&*what)?;
    file.remove(&key, &args.name).map_err(|error| match error {
        SealedError::NoSecret { .. } => missing(what),
        error => failed(what, &error),
    })?;
    out.either(&json!({"type": "secret_removed", "name": args.name}), format!("removed {}", args.name));
    Ok(DONE)
}

pub(super) fn rekey(args: &RekeyArgs, out: Output) -> Outcome {
    let what = "cannot encrypt the sealed file to another key";
    let wrong = |error: &SealedError| failed(what.to_owned(), error);
    let meant = args.place.meant()?;
    let shown = match &args.new_key {
        Some(text) => {
            let origin = origin("--new-key", text)?;
            let (file, old) = meant.open(what)?;
            // Nothing is made before it is known that the old key opens the file.
            file.list(&old).map_err(|error| wrong(&error))?;
            let new = key(&origin).map_err(|error| wrong(&error))?;
            file.rekey(&old, &new).map_err(|error| wrong(&error))?;
            note(format!(
                "the old key, {}, is of no more use here; name the new one in the file of credentials",
                meant.key
            ));
            (origin, new.recipient())
        }
        None => {
            let Origin::File(path) = &meant.key else {
                return Err(Failure::new(what)
                    .why(format!("{} is no file in whose place a new key could be put", meant.key))
                    .fix("name a new key with --new-key"));
            };
            let recipient = replace(&meant, path).map_err(|error| wrong(&error))?;
            (meant.key.clone(), recipient)
        }
    };
    let (origin, recipient) = shown;
    let told = json!({
        "type": "vault_rekeyed", "file": meant.file.display().to_string(), "key": origin.to_string(), "recipient": recipient,
    });
    out.either(&told, format!("{} now opens with {origin}", meant.file.display()));
    Ok(DONE)
}

/// Puts a new key in the old one's place. The two files cannot change as one: between the steps the new key lies beside the old one,
/// and a second run goes on from whichever step the first had come to.
fn replace(meant: &Meant, path: &Path) -> Result<String, SealedError> {
    let surroundings = Surroundings::of_process();
    let io = |step, path: &Path| {
        let path = path.to_owned();
        move |error| SealedError::Io { step, path, error }
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let file = SealedFile::at(&meant.file);
    let old = Key::read(&meant.key, &surroundings)?;
    let begun = beside.exists().then(|| Key::read(&Origin::File(beside.clone()), &surroundings)).transpose()?;
    let new = match begun {
        Some(new) => {
            if let Err(error) = file.list(&new) {
                // Not encrypted to it yet.
                if !matches!(error, SealedError::WrongKey(_)) {
                    return Err(error);
                }
                file.rekey(&old, &new)?;
            }
            new
        }
        None => {
            file.list(&old)?;
            let new = Key::generate(&beside)?;
            file.rekey(&old, &new)?;
            new
        }
    };
    std::fs::rename(&beside, path).map_err(io("put in place", path))?;
    if let Some(directory) = path.parent() {
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(io("made durable", directory))?;
    }
    Ok(new.recipient())
}

#[expect(clippy::disallowed_methods, reason = "a command is where the present time comes in")]
fn now() -> SystemTime {
    SystemTime::now()
}
