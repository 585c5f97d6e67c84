//! The built-in tools as the model is told of them.

use serde_json::{Value, json};

/// Where things are in a sandbox; said once, behind the agent's own system prompt.
pub(crate) const PLACES: &str = "Your tools run in a sandbox without a network. The working directory is /workspace. \
Put files that are meant for the user into /mnt/session/outputs.";

/// Name, description and input schema of the tools of `agent_toolset_20260401` that a worker runs.
pub(crate) fn builtin() -> [(&'static str, &'static str, Value); 6] {
    let path = json!({"type": "string", "description": "Absolute, or relative to /workspace."});
    [
        (
            "bash",
            "Run a command in a persistent bash shell. Working directory, variables and background jobs last between \
             calls. Standard input is empty. Output beyond 100 KiB is cut at the front.",
            json!({"type": "object", "properties": {
                "command": {"type": "string", "description": "The command to run."},
                "restart": {"type": "boolean", "description": "Start a fresh shell first."},
                "timeout_ms": {"type": "integer", "description": "Give up after so many milliseconds; 120000 unless told."}}}),
        ),
        (
            "read",
            "Read a text file, an image or a PDF.",
            json!({"type": "object", "required": ["file_path"], "properties": {
                "file_path": path,
                "view_range": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2,
                    "description": "First and last line, counted from 1; a last line of 0 or less means the end."}}}),
        ),
        (
            "write",
            "Write a file, replacing what is there. Missing folders are made.",
            json!({"type": "object", "required": ["file_path", "content"], "properties": {
                "file_path": path, "content": {"type": "string"}}}),
        ),
        (
            "edit",
            "Replace a string in a file. The old string must occur exactly once unless replace_all is set.",
            json!({"type": "object", "required": ["file_path", "old_string", "new_string"], "properties": {
                "file_path": path, "old_string": {"type": "string"}, "new_string": {"type": "string"},
                "replace_all": {"type": "boolean"}}}),
        ),
        (
            "glob",
            "List files whose path matches a pattern such as src/**/*.rs, newest first, at most 200.",
            json!({"type": "object", "required": ["pattern"], "properties": {
                "pattern": {"type": "string"}, "path": path}}),
        ),
        (
            "grep",
            "Search file contents with a regular expression; prints path, line number and line.",
            json!({"type": "object", "required": ["pattern"], "properties": {
                "pattern": {"type": "string"}, "path": path}}),
        ),
    ]
}
