//! A sandbox with a workspace of its own.

use std::path::PathBuf;
use std::time::Duration;

use palisade_sandbox::{Driver, Native, Options, Sandbox, Spec, ToolCall};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) struct Rig {
    pub(crate) sandbox: Sandbox,
    pub(crate) home: TempDir,
}

impl Rig {
    pub(crate) async fn new() -> Rig {
        Rig::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Spec)) -> Rig {
        let home = tempfile::tempdir().unwrap();
        let (workspace, outputs) = (home.path().join("workspace"), home.path().join("outputs"));
        std::fs::create_dir(&workspace).unwrap();
        std::fs::create_dir(&outputs).unwrap();
        let mut spec = Spec::new(workspace, outputs);
        change(&mut spec);
        let sandbox = Native::new(Options::default()).create(spec).await.unwrap();
        Rig { sandbox, home }
    }

    pub(crate) fn workspace(&self) -> PathBuf {
        self.home.path().join("workspace")
    }

    pub(crate) async fn call(&self, name: &str, input: Value) -> (String, bool) {
        let call = ToolCall { name: name.to_owned(), input, timeout: Duration::from_secs(20) };
        let output = self.sandbox.tool(call).await.unwrap();
        (output.content[0]["text"].as_str().unwrap_or_default().to_owned(), output.is_error)
    }

    /// What a command prints, whatever its status.
    pub(crate) async fn bash(&self, command: &str) -> String {
        self.call("bash", json!({"command": command})).await.0
    }
}
