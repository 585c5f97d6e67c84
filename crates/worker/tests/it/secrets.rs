//! No credential in a sandbox, in a log line, or in what the owner is shown.

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};

use palisade_testkit::control_plane::{KEY, Reply, Route, text, token};

use crate::rig::Rig;

/// What the whole process logs, at the finest.
#[derive(Clone, Default)]
pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Captured {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// Captures the log from now on. Other tests in this process only add lines, and their credentials are of the same kinds.
pub(crate) fn log() -> Captured {
    static LOG: OnceLock<Captured> = OnceLock::new();
    let captured = LOG.get_or_init(|| {
        let captured = Captured::default();
        let writer = captured.clone();
        let logs = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone());
        tracing::subscriber::set_global_default(logs.finish()).unwrap();
        captured
    });
    captured.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_credential_leaves_the_worker() {
    let captured = log();
    let rig = Rig::new().await;
    let session = rig.fake.session();
    // Failures are what logs dwell on.
    rig.fake.fault(Route::Heartbeat, [Reply::error(500)]);
    rig.fake.fault(Route::Session, [Reply::error(500)]);
    rig.fake.fault(Route::Events, [Reply::error(500)]);
    rig.fake.fault(Route::Send, [Reply::error(500), Reply::error(400)]);
    session.queue();
    let working = rig.start();
    let first = session.bash("echo replaced");
    rig.result(&session, &first).await;
    let environment = session.bash("env; cat /proc/*/environ | tr '\\0' '\\n'; cat /proc/*/cmdline | tr '\\0' '\\n'");
    let result = rig.result(&session, &environment).await;
    let shown = text(&result);
    assert!(shown.contains("PATH="), "{shown}");
    assert!(!shown.contains("ANTHROPIC") && !shown.contains("sk-ant"), "{shown}");
    let observed = format!("{:?}", rig.observed.lock().unwrap());
    working.end().await;

    let logs = captured.text();
    assert!(logs.contains("executing tool") && logs.contains("result refused"), "the log was captured");
    for credential in [KEY, token(&session.id).as_str(), "sk-ant-", "sessions_token"] {
        assert!(!logs.contains(credential), "a credential is in the log: {credential}");
        assert!(!observed.contains(credential));
    }
}
