//! Credentials on their way from where they are kept to where they are used.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use palisade_api::Secret;
use zeroize::Zeroizing;

use crate::output::{Failure, Outcome};

/// Longer than any key; what is longer is some other file.
const LONGEST: u64 = 16 * 1024;

/// Where a key is read from. Never its value: an argument is visible to every process of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file that holds nothing but the key.
    File(PathBuf),
    /// The name of an environment variable.
    Environment(String),
}

impl Source {
    /// The source that the two usual options name, if any.
    pub(crate) fn named(file: Option<&Path>, variable: Option<&str>) -> Option<Source> {
        file.map(|path| Source::File(path.to_owned()))
            .or_else(|| variable.map(|name| Source::Environment(name.to_owned())))
    }

    /// Reads the key; `what` names it in errors.
    pub(crate) fn read(&self, what: &str) -> Outcome<Secret> {
        let failed = || Failure::new(format!("{what} cannot be read"));
        let (text, origin) = match self {
            Source::File(path) => {
                let origin = path.display().to_string();
                let mut text = Zeroizing::new(String::new());
                std::fs::File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_string(&mut text)).map_err(
                    |why| {
                        let fix = format!("check that {origin} exists and who may read it");
                        failed().why(format!("{origin}: {why}")).fix(fix)
                    },
                )?;
                (text, origin)
            }
            Source::Environment(name) => {
                let text = std::env::var(name).map(Zeroizing::new).map_err(|_| {
                    let fix = format!("set {name}, or name a file instead");
                    failed().why(format!("the environment variable {name} is not set to text")).fix(fix)
                })?;
                (text, name.clone())
            }
        };
        let key = text.trim();
        let plausible = !key.is_empty() && key.len() as u64 <= LONGEST && key.bytes().all(|b| b.is_ascii_graphic());
        if !plausible {
            return Err(failed()
                .why(format!("{origin} does not hold one line of printable characters"))
                .fix("put nothing but the key there"));
        }
        Ok(Secret::new(key))
    }
}

/// Says to the process that takes this one's place which key it finds on its standard input.
const HANDED_OVER: &str = "PALISADE_KEY_ON_STDIN";

/// Reads a key from an environment variable so that it does not stay there.
///
/// What a process was started with can be read in `/proc` for as long as it lives, and changing the variable later does not
/// change that. So this process replaces itself by the same program with the same arguments, without the variable, and with
/// the key in a memory file on standard input, which is emptied once it is read.
pub(crate) fn taken_from_environment(name: &str, what: &str) -> Outcome<Secret> {
    use std::io::{Seek as _, Write as _};
    use std::os::unix::process::CommandExt as _;

    if std::env::var_os(HANDED_OVER).is_some_and(|handed| handed == name) {
        let key = Source::File("/dev/stdin".into()).read(what)?;
        // The memory file stays open as standard input; the key does not stay in it.
        let _ = rustix::fs::ftruncate(rustix::stdio::stdin(), 0);
        return Ok(key);
    }
    let key = Source::Environment(name.to_owned()).read(what)?;
    let hand_over = || -> std::io::Result<std::process::Command> {
        let memory = rustix::fs::memfd_create("key", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut memory = std::fs::File::from(memory);
        memory.write_all(key.expose().as_bytes())?;
        memory.rewind()?;
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args(std::env::args_os().skip(1)).env_remove(name).env(HANDED_OVER, name).stdin(memory);
        Ok(command)
    };
    let why = match hand_over() {
        // Only returns when it fails.
        Ok(mut command) => command.exec(),
        Err(why) => why,
    };
    Err(Failure::new(format!("{what} cannot be taken out of the environment"))
        .why(why)
        .fix("put it into a file of mode 0600 and name that instead"))
}
