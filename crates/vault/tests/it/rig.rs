//! What the tests share: a clock that stands still, a vault over a configuration, and a watch over everything that is shown.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::Write;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, SystemTime};

use palisade_testkit::secrets::Now;
use palisade_vault::{Clock, Reference, Session, Surroundings, Vault, VaultConfig, VaultError};

/// Every secret of the tests holds this.
pub(crate) const CANARY: &str = "CANARY";

#[derive(Debug, Default)]
pub(crate) struct ManualClock(Mutex<(Duration, Duration)>);

impl ManualClock {
    /// Lets time go by.
    pub(crate) fn pass(&self, seconds: u64) {
        self.0.lock().unwrap().0 += Duration::from_secs(seconds);
    }

    /// Puts only the time of day wrong.
    pub(crate) fn skew(&self, seconds: u64) {
        self.0.lock().unwrap().1 += Duration::from_secs(seconds);
    }

    fn base() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_780_000_000)
    }

    /// The true time of day, for servers.
    pub(crate) fn truth(self: &Arc<Self>) -> Now {
        let clock = self.clone();
        Arc::new(move || Self::base() + clock.0.lock().unwrap().0)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        let (passed, skew) = *self.0.lock().unwrap();
        Self::base() + passed + skew
    }

    fn elapsed(&self) -> Duration {
        self.0.lock().unwrap().0
    }
}

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A vault under test, and everything that it showed.
pub(crate) struct Rig {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) vault: Vault,
    shown: Mutex<String>,
}

/// Keeps whatever is logged, of all crates and at all levels.
pub(crate) fn watch_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let filter = tracing_subscriber::EnvFilter::new("trace");
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Log).init();
    });
}

/// Nothing of a secret was logged.
pub(crate) fn check_log() {
    let log = String::from_utf8_lossy(&LOG.lock().unwrap()).into_owned();
    assert!(!log.contains(CANARY), "the log has: {}", log.lines().find(|line| line.contains(CANARY)).unwrap());
}

pub(crate) fn surroundings(variables: &[(&str, &str)]) -> Surroundings {
    let all: BTreeMap<String, String> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Surroundings::new(move |name| all.get(name).map(Into::into))
}

pub(crate) fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

/// Writes a file that only its owner can read.
pub(crate) fn private(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

impl Rig {
    pub(crate) fn new(clock: Arc<ManualClock>, yaml: &str, variables: &[(&str, &str)]) -> Self {
        watch_log();
        let config = VaultConfig::parse(yaml).unwrap();
        let shown = Mutex::new(format!("{config:?}"));
        let vault = config.open(&surroundings(variables), clock.clone()).unwrap();
        Self { clock, vault, shown }
    }

    pub(crate) fn session(&self) -> Session {
        self.vault.session("session")
    }

    pub(crate) fn show(&self, thing: &impl Debug) {
        self.shown.lock().unwrap().push_str(&format!("{thing:?}\n{thing:#?}\n"));
    }

    /// The value, or the error's text.
    pub(crate) async fn value(&self, text: &str) -> Result<String, String> {
        self.value_in(&self.session(), text).await
    }

    pub(crate) async fn value_in(&self, session: &Session, text: &str) -> Result<String, String> {
        let got = session.value(&reference(text)).await;
        self.show(&got);
        self.show(&(&self.vault, session, self.vault.sources()));
        got.map(|secret| secret.expose().to_owned()).map_err(|error| self.text(&error))
    }

    pub(crate) fn text(&self, error: &VaultError) -> String {
        let text = error.to_string();
        self.shown.lock().unwrap().push_str(&text);
        text
    }

    /// Nothing of a secret was shown in an error, in debug output, or in the log.
    pub(crate) fn check(&self) {
        self.show(&self.vault);
        let shown = self.shown.lock().unwrap();
        assert!(!shown.contains(CANARY), "{}", shown.lines().find(|line| line.contains(CANARY)).unwrap());
        check_log();
    }
}

/// Asserts that a refusal says what is wrong.
#[track_caller]
pub(crate) fn refused(got: Result<String, String>, needles: &[&str]) {
    let error = got.expect_err("a refusal");
    for needle in needles {
        assert!(error.contains(needle), "`{needle}` is not in: {error}");
    }
}
