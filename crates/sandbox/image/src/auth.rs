//! Credentials for registries, from where the usual tools keep them.
//!
//! Looked at in this order: the variable `DOCKER_AUTH_CONFIG` (a whole configuration as text), the file that
//! `REGISTRY_AUTH_FILE` names, Podman's `auth.json`, Docker's `config.json`. The first that knows the registry counts.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use palisade_api::Secret;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use zeroize::Zeroizing;

use crate::reference::{self, RegistryReference};

/// A configuration, or what a credential program says, in bytes; what is longer is something else.
const LONGEST: u64 = 1024 * 1024;
/// How long a credential program may take: some ask a person or a cloud.
const PROGRAM_TIME: Duration = Duration::from_secs(15);
/// The name under which credential programs know Docker Hub.
const DOCKER_HUB_SERVER: &str = "https://index.docker.io/v1/";

/// Why credentials cannot be used. None of them shows a credential.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// A file cannot be read.
    #[error("the registry credentials in {path} cannot be read: {cause}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        cause: io::Error,
    },
    /// A configuration is not one.
    #[error("the registry credentials in {path} are not valid JSON (line {line}): repair the file or log in again")]
    Json {
        /// The file or variable.
        path: String,
        /// Where.
        line: usize,
    },
    /// An entry makes no sense.
    #[error("the entry for {registry} in {path} is no user and password: log in again")]
    Entry {
        /// The file or variable.
        path: String,
        /// The registry.
        registry: String,
    },
    /// A credential program cannot be used.
    #[error(
        "the credential program {program} {why}: run `{program} get` yourself, or take it out of the configuration"
    )]
    Program {
        /// Its name.
        program: String,
        /// What went wrong.
        why: String,
    },
}

/// What opens a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    Basic {
        user: String,
        password: Secret,
    },
    /// A token that is exchanged for one that opens the registry.
    Refresh(Secret),
    /// A token that opens the registry as it is.
    Bearer(Secret),
}

/// Where credentials are looked for.
#[derive(Debug, Clone, Default)]
pub struct CredentialSources {
    inline: Option<Secret>,
    files: Vec<PathBuf>,
    program_dirs: Vec<PathBuf>,
}

#[derive(Default, Deserialize)]
struct Configuration {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credHelpers", default)]
    programs: BTreeMap<String, String>,
    #[serde(rename = "credsStore", default)]
    program: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
    registrytoken: Option<Secret>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    user: String,
    #[serde(rename = "Secret")]
    secret: Secret,
}

impl CredentialSources {
    /// No credentials: every registry is anonymous.
    pub fn none() -> CredentialSources {
        CredentialSources::default()
    }

    /// The usual places, by the variables that `variable` reads.
    pub fn usual(variable: impl Fn(&str) -> Option<OsString>) -> CredentialSources {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| set(name).map(PathBuf::from);
        let home = path("HOME");
        let below = |base: Option<PathBuf>, rest: &str| base.map(|base| base.join(rest));
        let config = path("XDG_CONFIG_HOME").or_else(|| below(home.clone(), ".config"));
        let docker = path("DOCKER_CONFIG").or_else(|| below(home, ".docker"));
        let files = [
            path("REGISTRY_AUTH_FILE"),
            below(path("XDG_RUNTIME_DIR"), "containers/auth.json"),
            below(config, "containers/auth.json"),
            below(docker, "config.json"),
        ];
        CredentialSources {
            inline: set("DOCKER_AUTH_CONFIG").and_then(|text| text.into_string().ok()).map(Secret::new),
            files: files.into_iter().flatten().collect(),
            program_dirs: set("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default(),
        }
    }

    /// Looks for a registry's credential.
    pub(crate) async fn find(&self, registry: &RegistryReference) -> Result<Option<Credential>, AuthError> {
        if let Some(text) = &self.inline {
            let found = self.look("DOCKER_AUTH_CONFIG", text.expose().as_bytes(), registry).await?;
            if found.is_some() {
                return Ok(found);
            }
        }
        for file in &self.files {
            let name = file.display().to_string();
            let text = match read(file) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(cause) => return Err(AuthError::Read { path: name, cause }),
            };
            let found = self.look(&name, &text, registry).await?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    async fn look(
        &self,
        path: &str,
        text: &[u8],
        registry: &RegistryReference,
    ) -> Result<Option<Credential>, AuthError> {
        let parsed: Result<Configuration, _> = serde_json::from_slice(text);
        // The error's own text may quote a value.
        let configuration = parsed.map_err(|error| AuthError::Json { path: path.to_owned(), line: error.line() })?;
        let keys = keys(registry);
        let of_registry =
            configuration.programs.iter().find(|(name, _)| normalised(name).as_deref() == Some(&registry.registry));
        if let Some((_, program)) = of_registry {
            return self.ask(program, registry).await;
        }
        // The most exact entry counts: Podman's may name a part of a registry.
        let entry = keys.iter().find_map(|key| {
            configuration.auths.iter().find(|(name, _)| normalised(name).as_deref() == Some(key.as_str()))
        });
        if let Some((_, entry)) = entry {
            let refuse = || AuthError::Entry { path: path.to_owned(), registry: registry.registry.clone() };
            if let Some(found) = credential(entry).map_err(|()| refuse())? {
                return Ok(Some(found));
            }
        }
        match &configuration.program {
            Some(program) => self.ask(program, registry).await,
            None => Ok(None),
        }
    }

    /// Asks a program `docker-credential-NAME` for a credential.
    async fn ask(&self, name: &str, registry: &RegistryReference) -> Result<Option<Credential>, AuthError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let shown: String = name.chars().filter(|c| plain(*c)).take(60).collect();
        let program = format!("docker-credential-{shown}");
        let failed = |why: &str| AuthError::Program { program: program.clone(), why: why.to_owned() };
        if shown != name || name.is_empty() {
            return Err(failed("has a name that cannot be a program's"));
        }
        let found = self.program_dirs.iter().map(|dir| dir.join(&program)).find(|path| path.is_file());
        let path = found.ok_or_else(|| failed("is not installed"))?;
        let server = match registry.registry.as_str() {
            "docker.io" => DOCKER_HUB_SERVER,
            other => other,
        };
        let asked = async {
            let mut child = tokio::process::Command::new(path)
                .arg("get")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()?;
            let mut input = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
            // A program that has its answer without reading is fine.
            let _ = input.write_all(server.as_bytes()).await;
            drop(input);
            let mut output = Zeroizing::new(Vec::new());
            let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
            stdout.take(LONGEST).read_to_end(&mut output).await?;
            io::Result::Ok((child.wait().await?, output))
        };
        let (status, output) = tokio::time::timeout(PROGRAM_TIME, asked)
            .await
            .map_err(|_| failed("did not answer in time"))?
            .map_err(|error| failed(&format!("cannot be run ({error})")))?;
        if !status.success() {
            let text = String::from_utf8_lossy(&output);
            return if text.contains("credentials not found") { Ok(None) } else { Err(failed("failed")) };
        }
        let answer: Answer = serde_json::from_slice(&output).map_err(|_| failed("gave no credential"))?;
        Ok(Some(match answer.user.as_str() {
            "<token>" => Credential::Refresh(answer.secret),
            _ => Credential::Basic { user: answer.user, password: answer.secret },
        }))
    }
}

fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    use std::io::Read as _;
    let mut text = Zeroizing::new(Vec::new());
    std::fs::File::open(path)?.take(LONGEST).read_to_end(&mut text)?;
    Ok(text)
}

/// The names under which a registry's entry may stand, the most exact one first.
fn keys(registry: &RegistryReference) -> Vec<String> {
    let mut keys = Vec::new();
    let mut repository = registry.repository.as_str();
    loop {
        keys.push(format!("{}/{repository}", registry.registry));
        match repository.rsplit_once('/') {
            Some((parent, _)) => repository = parent,
            None => break,
        }
    }
    keys.push(registry.registry.clone());
    keys
}

/// An entry's name without what tools put around it: `https://index.docker.io/v1/` is `docker.io`.
fn normalised(name: &str) -> Option<String> {
    let bare = name.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    let (host, rest) = match bare.split_once('/') {
        Some((host, rest)) => (host, Some(rest)),
        None => (bare, None),
    };
    let host = reference::registry(host).ok()?;
    Some(rest.map_or_else(|| host.clone(), |rest| format!("{host}/{rest}")))
}

/// The credential of an entry; none when it only says that a program has it.
fn credential(entry: &Entry) -> Result<Option<Credential>, ()> {
    let given = |secret: &Option<Secret>| secret.clone().filter(|secret| !secret.expose().is_empty());
    if let Some(token) = given(&entry.registrytoken) {
        return Ok(Some(Credential::Bearer(token)));
    }
    if let Some(token) = given(&entry.identitytoken) {
        return Ok(Some(Credential::Refresh(token)));
    }
    if let Some(auth) = given(&entry.auth) {
        let decoded = Zeroizing::new(STANDARD.decode(auth.expose().trim()).map_err(|_| ())?);
        let text = std::str::from_utf8(&decoded).map_err(|_| ())?;
        let (user, password) = text.split_once(':').ok_or(())?;
        let password = Secret::new(password.trim_end_matches('\0'));
        return Ok(Some(Credential::Basic { user: user.to_owned(), password }));
    }
    match (&entry.username, given(&entry.password)) {
        (Some(user), Some(password)) => Ok(Some(Credential::Basic { user: user.clone(), password })),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn reference(text: &str) -> RegistryReference {
        match text.parse().unwrap() {
            reference::Reference::Registry(registry) => registry,
            other => panic!("{other} is of no registry"),
        }
    }

    fn basic(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Basic { user: user.into(), password: Secret::new(password) })
    }

    #[tokio::test]
    async fn the_usual_files_are_understood() {
        let dir = tempfile::tempdir().unwrap();
        let docker = dir.path().join("docker");
        std::fs::create_dir(&docker).unwrap();
        let auth = |pair: &str| STANDARD.encode(pair);
        let config = serde_json::json!({"auths": {
            "https://index.docker.io/v1/": {"auth": auth("hub:a:b")},
            "ghcr.io": {"username": "u", "password": "p"},
            "ghcr.io/acme": {"auth": auth("acme:x")},
            "token.example": {"auth": "", "identitytoken": "t"},
            "bad.example": {"auth": "???"},
        }});
        std::fs::write(docker.join("config.json"), config.to_string()).unwrap();
        let inline = serde_json::json!({"auths": {"first.example": {"auth": auth("i:j")}}}).to_string();
        let sources = CredentialSources::usual(|name| match name {
            "DOCKER_CONFIG" => Some(docker.clone().into()),
            "DOCKER_AUTH_CONFIG" => Some(inline.clone().into()),
            _ => None,
        });
        let find = async |text: &str| sources.find(&reference(text)).await.unwrap();
        assert_eq!(find("debian").await, basic("hub", "a:b"));
        assert_eq!(find("ghcr.io/x/y").await, basic("u", "p"));
        assert_eq!(find("ghcr.io/acme/y").await, basic("acme", "x"));
        assert_eq!(find("first.example/y").await, basic("i", "j"));
        assert_eq!(find("token.example/y").await, Some(Credential::Refresh(Secret::new("t"))));
        assert_eq!(find("other.example/y").await, None);
        assert!(matches!(sources.find(&reference("bad.example/x")).await, Err(AuthError::Entry { .. })));
        assert!(!format!("{sources:?} {:?}", find("debian").await).contains("a:b"));

        std::fs::write(docker.join("config.json"), "{\"auths\": {\"x\": \"hunter2\"}}").unwrap();
        let error = sources.find(&reference("debian")).await.unwrap_err();
        assert!(matches!(error, AuthError::Json { .. }));
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn credential_programs_are_asked() {
        let dir = tempfile::tempdir().unwrap();
        let program = |name: &str, script: &str| {
            let path = dir.path().join(format!("docker-credential-{name}"));
            // Written by another process, so that no descriptor of this one is open for writing when it is run.
            let made = std::process::Command::new("/bin/sh")
                .args(["-c", "printf '%s' \"$1\" > \"$0\""])
                .arg(&path)
                .arg(format!("#!/bin/sh\n{script}"))
                .status();
            assert!(made.unwrap().success());
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        program("good", "read -r host; echo \"{\\\"Username\\\":\\\"$host\\\",\\\"Secret\\\":\\\"s\\\"}\"");
        program("none", "echo 'credentials not found in native keychain'; exit 1");
        program("bad", "echo hunter2; exit 1");
        let config = serde_json::json!({
            "credsStore": "none",
            "credHelpers": {
                "good.example": "good", "bad.example": "bad", "gone.example": "gone", "path.example": "../good",
            },
        });
        let file = dir.path().join("auth.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let sources = CredentialSources::usual(|name| match name {
            "REGISTRY_AUTH_FILE" => Some(file.clone().into()),
            "PATH" => Some(dir.path().into()),
            _ => None,
        });
        let find = async |text: &str| sources.find(&reference(text)).await;
        assert_eq!(find("good.example/x").await.unwrap(), basic("good.example", "s"));
        assert_eq!(find("other.example/x").await.unwrap(), None);
        for bad in ["bad.example/x", "gone.example/x", "path.example/x"] {
            let error = find(bad).await.unwrap_err();
            assert!(matches!(error, AuthError::Program { .. }), "{error}");
            assert!(!error.to_string().contains("hunter2"));
        }
    }
}
