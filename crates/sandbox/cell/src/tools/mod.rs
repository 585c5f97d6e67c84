//! The file tools.

mod edit;
mod glob;
mod grep;
mod path;
mod read;
mod walk;
mod write;

pub(crate) use path::Roots;
pub(crate) use walk::Stop;

use std::path::PathBuf;

use path::For;
use serde_json::{Value, json};

/// Files larger than this are read in parts and not edited, in bytes.
const MAX_FILE: u64 = 256 << 10;

/// A tool's result.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) content: Vec<Value>,
    pub(crate) is_error: bool,
}

impl Output {
    pub(crate) fn text(text: impl Into<String>) -> Output {
        Output { content: vec![json!({"type": "text", "text": text.into()})], is_error: false }
    }

    pub(crate) fn error(text: impl Into<String>) -> Output {
        Output { is_error: true, ..Output::text(text) }
    }
}

/// Runs a file tool. An error is what the model is told.
pub(crate) fn run(roots: &Roots, name: &str, input: &Value, stop: &Stop) -> Output {
    let done = match name {
        "read" => read::read(roots, input),
        "write" => write::write(roots, input).map(Output::text),
        "edit" => edit::edit(roots, input).map(Output::text),
        "glob" => glob::glob(roots, input, stop).map(Output::text),
        "grep" => grep::grep(roots, input, stop).map(Output::text),
        _ => Err(format!("{name}: there is no such tool")),
    };
    done.unwrap_or_else(Output::error)
}

/// A text argument that must be there.
fn text<'a>(input: &'a Value, tool: &str, field: &str) -> Result<&'a str, String> {
    match &input[field] {
        Value::String(text) => Ok(text),
        Value::Null => Err(format!("{tool}: {field} is required")),
        _ => Err(format!("{tool}: {field} must be a string")),
    }
}

/// Where a search begins: as given, and its real path.
fn base(roots: &Roots, tool: &str, input: &Value) -> Result<(String, PathBuf), String> {
    let given = match &input["path"] {
        Value::Null => ".".to_owned(),
        Value::String(path) if path.is_empty() => ".".to_owned(),
        Value::String(path) => path.clone(),
        _ => return Err(format!("{tool}: path must be a string")),
    };
    let path = roots.resolve(tool, &given, For::Reading)?;
    Ok((given, path))
}

/// The longest pattern, in bytes: what is made of one may be hundreds of times as large.
const MAX_PATTERN: usize = 32 << 10;

/// The pattern of a search, which must be there and not be made to exhaust this process.
fn pattern<'a>(tool: &str, input: &'a Value) -> Result<&'a str, String> {
    match text(input, tool, "pattern")? {
        "" => Err(format!("{tool}: pattern is required")),
        long if long.len() > MAX_PATTERN => Err(format!("{tool}: the pattern is longer than {MAX_PATTERN} bytes")),
        pattern => Ok(pattern),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a tool where the cell does: on a thread with little stack.
    fn run_there(root: &std::path::Path, name: &str, input: Value) -> Output {
        let roots = Roots::new("/workspace", &[(root.to_str().unwrap().to_owned(), true)]);
        let name = name.to_owned();
        let thread = std::thread::Builder::new().stack_size(crate::serve::TOOL_STACK);
        thread
            .spawn(move || run(&roots, &name, &input, &Stop::when(std::sync::Arc::default())))
            .unwrap()
            .join()
            .unwrap()
    }

    #[test]
    fn patterns_that_would_exhaust_the_cell_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let half = 16 << 10;
        for (name, pattern) in [
            ("glob", "{".repeat(half) + &"}".repeat(half)),
            ("glob", "{".repeat(1 << 20)),
            ("glob", "[".repeat(1 << 20)),
            ("glob", "{a,".repeat(1000) + &"}".repeat(1000)),
            ("grep", "(".repeat(half) + &")".repeat(half)),
            ("grep", "(".repeat(1 << 20)),
            ("grep", "a{1000}{1000}{1000}".to_owned()),
            ("grep", "(?i)\\w{30000}".to_owned()),
        ] {
            let output = run_there(dir.path(), name, json!({"pattern": pattern, "path": path}));
            assert!(output.is_error, "{name} {:?}", &pattern[..10]);
        }
        let output = run_there(dir.path(), "glob", json!({"pattern": "{a,{b,c}}/*.{rs,toml}", "path": path}));
        assert!(!output.is_error, "{:?}", output.content);
    }

    /// Calls with some bytes changed, the same in every run.
    #[test]
    fn changed_calls_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(dir.path().join("canary"), "alive").unwrap();
        std::os::unix::fs::symlink("../canary", root.join("out")).unwrap();
        let at = root.to_str().unwrap();
        let calls = [
            ("read", json!({"file_path": format!("{at}/f"), "view_range": [1, -1]})),
            ("write", json!({"file_path": format!("{at}/f"), "content": "text\u{1b}[2J"})),
            ("write", json!({"file_path": format!("{at}/../canary"), "content": "dead"})),
            ("write", json!({"file_path": format!("{at}/out"), "content": "dead"})),
            (
                "edit",
                json!({"file_path": format!("{at}/f"), "old_string": "text", "new_string": "x", "replace_all": true}),
            ),
            ("edit", json!({"file_path": format!("{at}/out"), "old_string": "alive", "new_string": "dead"})),
            ("glob", json!({"pattern": "**/*.{a,b}[!c]?", "path": at})),
            ("grep", json!({"pattern": "^(a|b)*\\w{2,3}$", "path": at})),
        ];
        let mut state = 3u64;
        let mut below = |limit: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % limit as u64).unwrap()
        };
        let roots = Roots::new("/workspace", &[(at.to_owned(), true)]);
        let mut ran = 0;
        for (name, input) in &calls {
            let good = input.to_string().into_bytes();
            for _ in 0..100 {
                let mut bytes = good.clone();
                for _ in 0..below(4) {
                    let place = below(bytes.len());
                    bytes[place] = b"/.*{}[]()\\\"0-,?\x1b"[below(16)];
                }
                let Ok(input) = serde_json::from_slice(&bytes) else { continue };
                run(&roots, name, &input, &Stop::when(std::sync::Arc::default()));
                ran += 1;
            }
        }
        assert!(ran > 200, "{ran}");
        assert_eq!(std::fs::read_to_string(dir.path().join("canary")).unwrap(), "alive");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
