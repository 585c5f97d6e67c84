//! The sealed file: what is in it, what a crash leaves, what a stranger sees.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use palisade_api::Secret;
use palisade_vault::{Key, Origin, SealedError, SealedFile};

use crate::rig::{CANARY, ManualClock, Rig, private, refused, surroundings};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

#[tokio::test]
async fn secrets_are_added_rotated_and_removed_under_a_running_worker() {
    let folder = tempfile::tempdir().unwrap();
    let (path, key_path) = (folder.path().join("secrets.age"), folder.path().join("key"));
    let key = Key::generate(&key_path).unwrap();
    let file = SealedFile::create(&path, &key).unwrap();
    let yaml = format!("sealed: {{file: {}, key: 'file:{}'}}", path.display(), key_path.display());
    let rig = Rig::new(Arc::new(ManualClock::default()), &yaml, &[]);

    refused(rig.value("sealed:github").await, &["no secret `github`", "palisade vault list"]);
    file.add(&key, "github", Secret::new("CANARY-1\nwith \"lines\""), at(0)).unwrap();
    file.add(&key, "other", Secret::new("CANARY-o"), at(0)).unwrap();
    rig.clock.pass(6);
    assert_eq!(rig.value("sealed:github").await.unwrap(), "CANARY-1\nwith \"lines\"");
    file.rotate(&key, "github", Secret::new("CANARY-2"), at(86_400)).unwrap();
    assert_eq!(rig.value("sealed:github").await.unwrap(), "CANARY-2", "the next use has the new value");
    let list = file.list(&key).unwrap();
    let shown = format!("{list:?} {key:?} {file:?}");
    assert!(!shown.contains(CANARY) && !shown.contains("SECRET-KEY"), "{shown}");
    assert_eq!(
        list.iter().map(|entry| (entry.name.as_str(), entry.changed.as_str())).collect::<Vec<_>>(),
        [("github", "1970-01-02T00:00:00Z"), ("other", "1970-01-01T00:00:00Z")]
    );
    file.remove(&key, "github").unwrap();
    refused(rig.value("sealed:github").await, &["no secret `github`"]);
    assert_eq!(rig.value("sealed:other").await.unwrap(), "CANARY-o");

    // Another key: the worker goes on with what its key file holds then.
    let next = Key::generate(&folder.path().join("next")).unwrap();
    file.rekey(&key, &next).unwrap();
    refused(rig.value("sealed:other").await, &["not encrypted to this key"]);
    rig.clock.pass(6);
    std::fs::rename(folder.path().join("next"), &key_path).unwrap();
    assert_eq!(rig.value("sealed:other").await.unwrap(), "CANARY-o");

    for path in [&path, &key_path] {
        assert_eq!(std::fs::metadata(path).unwrap().mode() & 0o7777, 0o600);
    }
    let content = std::fs::read(&path).unwrap();
    assert!(content.starts_with(b"age-encryption.org/v1\n-> X25519 "));
    assert!(!content.windows(6).any(|window| window == CANARY.as_bytes()));
    rig.check();
}

#[test]
fn what_cannot_be_done_says_why_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (path, key_path) = (folder.path().join("secrets.age"), folder.path().join("key"));
    let key = Key::generate(&key_path).unwrap();
    assert!(matches!(Key::generate(&key_path), Err(SealedError::Exists(_))));
    let file = SealedFile::create(&path, &key).unwrap();
    assert!(matches!(SealedFile::create(&path, &key), Err(SealedError::Exists(_))));
    file.add(&key, "a", Secret::new("CANARY-a"), at(0)).unwrap();
    assert!(matches!(file.add(&key, "a", Secret::new("CANARY-b"), at(0)), Err(SealedError::Taken { .. })));
    assert!(matches!(file.rotate(&key, "b", Secret::new("CANARY-b"), at(0)), Err(SealedError::NoSecret { .. })));
    assert!(matches!(file.remove(&key, "b"), Err(SealedError::NoSecret { .. })));
    for name in ["", "a b", "a/b", "ä", &"x".repeat(129)] {
        assert!(matches!(file.add(&key, name, Secret::new("CANARY-b"), at(0)), Err(SealedError::Name)), "{name}");
    }
    assert!(matches!(file.add(&key, "b", Secret::new(" \n"), at(0)), Err(SealedError::Value(_))));
    assert!(matches!(file.add(&key, "b", Secret::new("x".repeat(70_000)), at(0)), Err(SealedError::Value(_))));
    let stranger = Key::generate(&folder.path().join("stranger")).unwrap();
    assert!(matches!(file.list(&stranger), Err(SealedError::WrongKey(_))));

    // Every damage is noticed.
    let good = std::fs::read(&path).unwrap();
    for index in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[index] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let error = file.list(&key).unwrap_err();
        assert!(matches!(error, SealedError::Damaged { .. } | SealedError::WrongKey(_)), "{index}: {error}");
    }
    std::fs::write(&path, &good[..good.len() - 1]).unwrap();
    assert!(matches!(file.list(&key), Err(SealedError::Damaged { .. })));
    std::fs::write(&path, &good).unwrap();

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o620)).unwrap();
    assert!(file.list(&key).unwrap_err().to_string().contains("mode 0620"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();
    assert!(SealedFile::at(&link).list(&key).unwrap_err().to_string().contains("symbolic link"));
    assert_eq!(file.list(&key).unwrap().len(), 1);
}

#[test]
fn what_a_crash_left_is_no_hindrance_and_writers_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secrets.age");
    let key = Key::generate(&folder.path().join("key")).unwrap();
    let file = SealedFile::create(&path, &key).unwrap();
    // A writer died after half of its new file.
    std::fs::write(folder.path().join(".secrets.age.new"), b"half").unwrap();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let (file, origin) = (file.clone(), Origin::File(folder.path().join("key")));
            std::thread::spawn(move || {
                let key = Key::read(&origin, &surroundings(&[])).unwrap();
                for number in 0..5 {
                    file.add(&key, &format!("s{thread}-{number}"), Secret::new("CANARY"), at(0)).unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(file.list(&key).unwrap().len(), 20);
    let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["key", "secrets.age"]);
}

#[test]
fn keys_come_from_systemd_too_and_what_is_none_is_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let key = Key::generate(&folder.path().join("key")).unwrap();
    let around =
        surroundings(&[("CREDENTIALS_DIRECTORY", folder.path().to_str().unwrap()), ("BAD", "AGE-SECRET-KEY-1CANARY")]);
    let read = Key::read(&"credential:key".parse().unwrap(), &around).unwrap();
    assert_eq!(read.recipient(), key.recipient());
    assert!(key.recipient().starts_with("age1"));
    let error = Key::read(&"env:BAD".parse().unwrap(), &around).unwrap_err();
    assert!(matches!(&error, SealedError::KeyParse(_)));
    assert!(!format!("{error} {error:?}").contains(CANARY));
    private(&folder.path().join("key"), "CANARY");
    std::fs::set_permissions(folder.path().join("key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let origin = Origin::File(folder.path().join("key"));
    assert!(Key::read(&origin, &around).unwrap_err().to_string().contains("chmod 0600"));
}

fn program(path: &std::path::Path, text: &str, mode: u32) -> Origin {
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    Origin::Program(path.to_owned())
}

#[test]
fn a_program_may_print_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let (path, key) = (folder.path().join("program"), Key::generate(&folder.path().join("key")).unwrap());
    let around = surroundings(&[]);
    let printing = format!("cat {}", folder.path().join("key").display());
    let good = program(&path, &printing, 0o700);
    assert_eq!(good.to_string().parse::<Origin>().unwrap(), good);
    assert_eq!(Key::read(&good, &around).unwrap().recipient(), key.recipient());
    // Nothing of this process's comes in, and what is started in the background neither holds it up nor stays.
    let text = format!(
        "[ -z \"$HOME$CARGO\" ] && [ $# = 0 ] && [ \"$(pwd)\" = / ] || exit 1\nsleep 60 >/dev/null &\n{printing}"
    );
    assert!(Key::read(&program(&path, &text, 0o700), &around).is_ok());
    for (text, mode, says) in [
        (printing.as_str(), 0o777, "chmod go-w"),
        (&printing, 0o600, "cannot be started"),
        ("echo AGE-SECRET-KEY-1CANARY; echo CANARY >&2; exit 7", 0o700, "run it by hand"),
        ("exit 0", 0o700, "is empty"),
        ("yes CANARY", 0o700, "a secret is shorter"),
        ("printf '\\377'", 0o700, "not valid UTF-8"),
        ("echo AGE-SECRET-KEY-1CANARY", 0o700, "holds no age identity"),
    ] {
        let error = Key::read(&program(&path, text, mode), &around).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(says) && !shown.contains(CANARY), "{text}: {shown}");
    }
}

/// The key is kept by a TPM, and comes out for as long as the machine was started as it was when it was sealed.
#[test]
fn a_tpm_may_keep_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let Some(tpm) = Tpm::start(folder.path()) else { return };
    let key = Key::generate(&at("key")).unwrap();
    // As docs/vault.md has it.
    tpm.run("tpm2_createprimary -Q -C o -c primary");
    tpm.run("tpm2_startauthsession -S session && tpm2_policypcr -Q -S session -l sha256:7 -L policy && tpm2_flushcontext session");
    tpm.run("grep -v '^#' key | tpm2_create -Q -C primary -L policy -a 'fixedtpm|fixedparent' -i - -u key.public -r key.sealed");
    tpm.run("tpm2_load -Q -C primary -u key.public -r key.sealed -c loaded && tpm2_evictcontrol -Q -C o -c loaded 0x81010001");
    std::fs::remove_file(at("key")).unwrap();
    tpm.run("tpm2_flushcontext -t");
    let unseal = format!("export {}\nexec tpm2_unseal -Q -c 0x81010001 -p pcr:sha256:7", tpm.place());
    let unseal = program(&at("unseal"), &unseal, 0o700);
    let read = Key::read(&unseal, &surroundings(&[])).unwrap();
    assert_eq!(read.recipient(), key.recipient());
    // Something else was started.
    tpm.run("tpm2_pcrextend 7:sha256=0000000000000000000000000000000000000000000000000000000000000001");
    let error = Key::read(&unseal, &surroundings(&[])).unwrap_err().to_string();
    assert!(error.contains("failed"), "{error}");
}

/// A TPM in software, which ends with this.
struct Tpm {
    process: std::process::Child,
    folder: std::path::PathBuf,
}

impl Tpm {
    /// None, and the reason said, where there is none.
    #[expect(clippy::print_stdout, reason = "a test that is not run says why")]
    fn start(folder: &std::path::Path) -> Option<Tpm> {
        let state = folder.join("state");
        std::fs::create_dir(&state).unwrap();
        let socket = |name: &str| format!("type=unixio,path={}", folder.join(name).display());
        let mut command = std::process::Command::new("swtpm");
        command.args(["socket", "--tpm2", "--flags", "startup-clear", "--tpmstate"]);
        command.arg(format!("dir={}", state.display()));
        command.args(["--server", &socket("tpm"), "--ctrl", &socket("tpm.ctrl")]);
        let started = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn();
        let tools = std::process::Command::new("tpm2_unseal").arg("--version").output();
        let (Ok(process), Ok(_)) = (started, tools) else {
            println!("not run: no TPM in software here (Debian: apt-get install swtpm tpm2-tools)");
            assert!(std::env::var_os("CI").is_none(), "not run: swtpm or tpm2-tools are missing");
            return None;
        };
        let tpm = Tpm { process, folder: folder.to_owned() };
        for _ in 0..500 {
            if folder.join("tpm").exists() && folder.join("tpm.ctrl").exists() {
                return Some(tpm);
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        panic!("the TPM does not come up");
    }

    fn place(&self) -> String {
        format!("TPM2TOOLS_TCTI=swtpm:path={}", self.folder.join("tpm").display())
    }

    fn run(&self, text: &str) {
        let mut command = std::process::Command::new("/bin/sh");
        // The kernel's resource manager, which this one has not, would make room by itself.
        command
            .arg("-ec")
            .arg(format!("export {}\ntpm2_flushcontext -t\n{text}", self.place()))
            .current_dir(&self.folder);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
