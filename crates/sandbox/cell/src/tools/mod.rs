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
        Value::Null => "/workspace".to_owned(),
        Value::String(path) if path.is_empty() => "/workspace".to_owned(),
        Value::String(path) => path.clone(),
        _ => return Err(format!("{tool}: path must be a string")),
    };
    let path = roots.resolve(tool, &given, For::Reading)?;
    Ok((given, path))
}
