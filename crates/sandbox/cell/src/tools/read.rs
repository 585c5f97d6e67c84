//! `read`: text, a part of a text, an image or a PDF.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::path::{For, Roots, explain};
use super::{MAX_FILE, Output, text};
use crate::sys;

/// An image may be this long in base64.
const MAX_IMAGE: u64 = 5 << 20;
const MAX_PDF: u64 = 20 << 20;

pub(super) fn read(roots: &Roots, input: &Value) -> Result<Output, String> {
    let given = text(input, "read", "file_path")?;
    let range = range(&input["view_range"])?;
    let path = roots.resolve("read", given, For::Reading)?;
    // Without blocking: a FIFO in the workspace must not hold the call.
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOFOLLOW).open(&path);
    let mut file = file.map_err(|why| explain("read", given, &why))?;
    sys::refuse_process_files(&file).map_err(|why| explain("read", given, &why))?;
    let meta = file.metadata().map_err(|why| explain("read", given, &why))?;
    if !meta.is_file() {
        return Err(format!("read: {given} is not a regular file"));
    }
    if let Some((first, last)) = range {
        return lines(file, given, first, last).map(Output::text);
    }
    let mut head = [0; 16];
    let got = read_some(&mut file, &mut head).map_err(|why| explain("read", given, &why))?;
    let head = &head[..got];
    if let Some(media_type) = image(head) {
        if meta.len() > MAX_IMAGE / 4 * 3 {
            return Err(format!(
                "read: {given} is {} bytes, exceeds the limit of 5 MiB for an encoded image",
                meta.len()
            ));
        }
        return block(file, head, given, "image", media_type);
    }
    if head.starts_with(b"%PDF-") {
        if meta.len() > MAX_PDF {
            return Err(format!("read: {given} is {} bytes, exceeds the limit of 20 MiB for a PDF", meta.len()));
        }
        return block(file, head, given, "document", "application/pdf");
    }
    if meta.len() > MAX_FILE {
        return Err(too_big(given, meta.len()));
    }
    let mut bytes = head.to_vec();
    // The file may have grown since it was measured.
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|why| explain("read", given, &why))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(too_big(given, bytes.len() as u64));
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(Output::text(text)),
        _ => Err(format!("read: {given}: not valid UTF-8 text (binary file)")),
    }
}

fn too_big(given: &str, size: u64) -> String {
    format!("read: {given} is {size} bytes, exceeds {MAX_FILE}-byte limit. Use view_range to read a part of it")
}

fn read_some(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..])? {
            0 => break,
            more => got += more,
        }
    }
    Ok(got)
}

fn image(head: &[u8]) -> Option<&'static str> {
    if head.starts_with(b"\x89PNG\r\n\x1a\n") {
        Some("image/png")
    } else if head.starts_with(&[0xff, 0xd8, 0xff]) {
        Some("image/jpeg")
    } else if head.starts_with(b"GIF87a") || head.starts_with(b"GIF89a") {
        Some("image/gif")
    } else if head.starts_with(b"RIFF") && head.get(8..12) == Some(b"WEBP") {
        Some("image/webp")
    } else {
        None
    }
}

fn block(file: File, head: &[u8], given: &str, kind: &str, media_type: &str) -> Result<Output, String> {
    let mut bytes = head.to_vec();
    file.take(MAX_PDF).read_to_end(&mut bytes).map_err(|why| explain("read", given, &why))?;
    let data = STANDARD.encode(&bytes);
    let source = json!({"type": "base64", "media_type": media_type, "data": data});
    Ok(Output { content: vec![json!({"type": kind, "source": source})], is_error: false })
}

fn range(value: &Value) -> Result<Option<(u64, Option<u64>)>, String> {
    const WRONG: &str = "read: view_range must be [start_line, end_line]";
    let Some(pair) = value.as_array() else {
        return if value.is_null() { Ok(None) } else { Err(WRONG.to_owned()) };
    };
    let [first, last] = pair.as_slice() else { return Err(WRONG.to_owned()) };
    let (Some(first), Some(last)) = (first.as_i64(), last.as_i64()) else { return Err(WRONG.to_owned()) };
    let first = u64::try_from(first.max(1)).unwrap_or(1);
    let last = u64::try_from(last).ok().filter(|last| *last > 0);
    if last.is_some_and(|last| last < first) {
        return Err(WRONG.to_owned());
    }
    Ok(Some((first, last)))
}

/// The lines from `first` to `last`, both included, counted from one. The file may be larger than what may be returned.
fn lines(file: File, given: &str, first: u64, last: Option<u64>) -> Result<String, String> {
    let mut reader = BufReader::with_capacity(64 << 10, file);
    let mut wanted = Vec::new();
    let mut number = 0;
    loop {
        number += 1;
        if last.is_some_and(|last| number > last) {
            break;
        }
        let before = wanted.len();
        let room = MAX_FILE + 1 - before as u64;
        let mut skipped = Vec::new();
        let into = if number < first { &mut skipped } else { &mut wanted };
        let got = (&mut reader).take(room).read_until(b'\n', into).map_err(|why| explain("read", given, &why))?;
        if got == 0 {
            break;
        }
        let whole = into.last() == Some(&b'\n');
        if number < first {
            if !whole {
                skip_line(&mut reader).map_err(|why| explain("read", given, &why))?;
            }
        } else if wanted.len() as u64 > MAX_FILE {
            return Err(format!(
                "read: lines {first} to {number} of {given} exceed {MAX_FILE}-byte limit. Use a smaller view_range, or bash for a long line"
            ));
        }
    }
    match String::from_utf8(wanted) {
        Ok(text) if !text.contains('\0') => Ok(text.strip_suffix('\n').map(str::to_owned).unwrap_or(text)),
        _ => Err(format!("read: {given}: not valid UTF-8 text (binary file)")),
    }
}

fn skip_line(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let end = memchr::memchr(b'\n', buffer);
        let used = end.map_or(buffer.len(), |at| at + 1);
        reader.consume(used);
        if end.is_some() {
            return Ok(());
        }
    }
}
