//! `edit`: one string for another.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use serde_json::Value;

use super::path::{For, Roots, explain};
use super::{MAX_FILE, text, write};
use crate::sys;

pub(super) fn edit(roots: &Roots, input: &Value) -> Result<String, String> {
    let given = text(input, "edit", "file_path")?;
    let old = text(input, "edit", "old_string")?;
    let new = text(input, "edit", "new_string")?;
    let all = input["replace_all"].as_bool().unwrap_or(false);
    if old.is_empty() {
        return Err("edit: old_string is required".to_owned());
    }
    let path = roots.resolve("edit", given, For::Writing)?;
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOFOLLOW).open(&path);
    let file = file.map_err(|why| explain("edit", given, &why))?;
    sys::refuse_process_files(&file).map_err(|why| explain("edit", given, &why))?;
    let meta = file.metadata().map_err(|why| explain("edit", given, &why))?;
    if !meta.is_file() {
        return Err(format!("edit: {given} is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|why| explain("edit", given, &why))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("edit: {given} exceeds {MAX_FILE}-byte limit"));
    }
    let before = String::from_utf8(bytes).map_err(|_| format!("edit: {given}: not valid UTF-8 text (binary file)"))?;
    let count = before.matches(old).count();
    match count {
        0 => return Err(format!("edit: old_string not found in {given}")),
        1 => {}
        _ if all => {}
        _ => return Err(format!("edit: old_string appears {count} times in {given} (must be unique)")),
    }
    let after = if all { before.replace(old, new) } else { before.replacen(old, new, 1) };
    write::replace(&path, after.as_bytes()).map_err(|why| explain("edit", given, &why))?;
    let done = if all { count } else { 1 };
    Ok(format!("edited {given} ({done} replacement(s))"))
}
