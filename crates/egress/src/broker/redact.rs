//! Taking values out of answers.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use palisade_api::Secret;

use super::forms::{Form, base64_core, hex};
use super::scan::{Anchors, Check, Needles, Stream};

/// So many values of one placeholder are remembered: those from before a rotation are still secrets.
const REMEMBERED: usize = 8;

/// The values that were put in during this session.
#[derive(Default)]
pub(super) struct Known {
    compiled: RwLock<Arc<Compiled>>,
    /// Counts changes, so that a redactor sees cheaply whether its own are the latest.
    generation: AtomicU64,
}

#[derive(Default)]
struct Compiled {
    values: Vec<(Arc<Secret>, String)>,
    /// Each form of each value, with the index of the value.
    forms: Vec<(Form, usize)>,
    anchors: Anchors,
    generation: u64,
}

impl Known {
    /// A value was put in where `placeholder` stood.
    pub(super) fn add(&self, value: &Arc<Secret>, placeholder: &str) {
        if self.now().values.iter().any(|(known, _)| Arc::ptr_eq(known, value) || known == value) {
            return;
        }
        let mut compiled = self.compiled.write().unwrap_or_else(PoisonError::into_inner);
        let mut values = compiled.values.clone();
        if values.iter().any(|(known, _)| known == value) {
            return;
        }
        values.push((Arc::clone(value), placeholder.to_owned()));
        let of_this = values.iter().filter(|(_, of)| of == placeholder).count();
        if of_this > REMEMBERED
            && let Some(oldest) = values.iter().position(|(_, of)| of == placeholder)
        {
            values.remove(oldest);
        }
        let generation = compiled.generation + 1;
        *compiled = Arc::new(Compiled::new(values, generation));
        self.generation.store(generation, Ordering::Release);
    }

    /// A placeholder was given up: its values are looked for no longer.
    pub(super) fn forget(&self, placeholder: &str) {
        let mut compiled = self.compiled.write().unwrap_or_else(PoisonError::into_inner);
        let values = compiled.values.iter().filter(|(_, of)| of != placeholder).cloned().collect();
        let generation = compiled.generation + 1;
        *compiled = Arc::new(Compiled::new(values, generation));
        self.generation.store(generation, Ordering::Release);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.generation.load(Ordering::Acquire) == 0
    }

    fn now(&self) -> Arc<Compiled> {
        Arc::clone(&self.compiled.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes values out of headers. How many there were.
    pub(super) fn redact_headers(&self, headers: &mut HeaderMap) -> u64 {
        let compiled = self.now();
        if compiled.anchors.is_empty() {
            return 0;
        }
        let mut found = 0;
        for value in headers.values_mut() {
            let finds = Anchors::finds(&*compiled, value.as_bytes());
            if finds.is_empty() {
                continue;
            }
            let mut out = Vec::with_capacity(value.len());
            let mut copied = 0;
            for (owner, at, length) in &finds {
                out.extend_from_slice(&value.as_bytes()[copied..*at]);
                compiled.put(*owner, &value.as_bytes()[*at..at + length], &mut out);
                copied = at + length;
            }
            out.extend_from_slice(&value.as_bytes()[copied..]);
            found += finds.len() as u64;
            // Placeholders are plain text, so that this holds wherever the header did before.
            *value = HeaderValue::from_bytes(&out).unwrap_or_else(|_| HeaderValue::from_static("redacted"));
        }
        found
    }
}

impl Compiled {
    fn new(values: Vec<(Arc<Secret>, String)>, generation: u64) -> Compiled {
        let mut forms = Vec::new();
        let mut anchors = Vec::new();
        for (index, (value, _)) in values.iter().enumerate() {
            for form in Form::all(value.expose()) {
                let owner = u32::try_from(forms.len()).unwrap_or(u32::MAX);
                anchors.extend(form.anchors().into_iter().map(|anchor| (anchor, owner)));
                forms.push((form, index));
            }
        }
        Compiled { values, forms, anchors: Anchors::new(anchors), generation }
    }

    /// Writes what stands for a find, in the form of the find.
    fn put(&self, owner: u32, found: &[u8], out: &mut Vec<u8>) {
        let (form, index) = &self.forms[owner as usize];
        let (value, placeholder) = &self.values[*index];
        match form {
            Form::Text(_) => out.extend_from_slice(placeholder.as_bytes()),
            Form::Hex(_) => {
                let mut digits = hex(placeholder.as_bytes());
                if found.iter().any(u8::is_ascii_uppercase) {
                    digits.make_ascii_uppercase();
                }
                out.extend_from_slice(&digits);
            }
            // What stands around it must still decode: as many bytes as the value had, at the same place.
            Form::Base64 { before, .. } => {
                let same_length: Vec<u8> = placeholder.bytes().cycle().take(value.expose().len()).collect();
                let core = base64_core(&same_length, *before);
                let url = found.iter().any(|byte| matches!(byte, b'-' | b'_'));
                out.extend(core.iter().map(|byte| match byte {
                    b'+' if url => b'-',
                    b'/' if url => b'_',
                    byte => *byte,
                }));
            }
        }
    }
}

impl Needles for Compiled {
    fn anchors(&self) -> &Anchors {
        &self.anchors
    }

    fn check(&self, owner: u32, text: &[u8], more: bool) -> Check {
        self.forms[owner as usize].0.check(text, more)
    }
}

/// Replaces values by their placeholders in a stream, across the borders of its pieces. What cannot be the beginning of a value
/// is never held back.
pub struct Redactor {
    known: Arc<Known>,
    compiled: Arc<Compiled>,
    stream: Stream,
    found: u64,
    keeps_length: bool,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactor").field("found", &self.found).finish_non_exhaustive()
    }
}

impl Redactor {
    pub(super) fn new(known: Arc<Known>) -> Redactor {
        let compiled = known.now();
        Redactor { known, compiled, stream: Stream::default(), found: 0, keeps_length: false }
    }

    /// From now on what it puts in has the length of what it takes out: for streams with frames (WebSocket, gRPC).
    #[must_use]
    pub fn keeping_length(mut self) -> Redactor {
        self.keeps_length = true;
        self
    }

    /// Takes a piece and gives what may go on.
    pub fn push(&mut self, piece: Bytes) -> Bytes {
        self.run(piece, false)
    }

    /// The stream has ended: gives what was held back.
    pub fn finish(&mut self) -> Bytes {
        self.run(Bytes::new(), true)
    }

    /// How many values were replaced.
    pub fn found(&self) -> u64 {
        self.found
    }

    fn run(&mut self, piece: Bytes, ended: bool) -> Bytes {
        if self.known.generation.load(Ordering::Acquire) != self.compiled.generation {
            self.compiled = self.known.now();
        }
        if self.compiled.anchors.is_empty() {
            return piece;
        }
        let Redactor { compiled, stream, found: count, keeps_length, .. } = self;
        let out = stream.push(piece, ended, &**compiled, &mut |owner, found, out| {
            *count += 1;
            let from = out.len();
            compiled.put(owner, found, out);
            if *keeps_length {
                let put = out.split_off(from);
                out.extend(put.iter().cycle().take(found.len()));
            }
            Ok(())
        });
        // Nothing above gives an error.
        out.unwrap_or_default()
    }
}
