//! Finding placeholders of this service, whoever's they are, as they are and in the usual encodings.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::Mint;
use super::forms::{Form, SPOILT};
use super::placeholder::Core;
use super::scan::{Anchors, Check, Needles};

const LOOSE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Knows the markers of a [`Mint`] in each form.
pub(super) struct Guard {
    mint: Mint,
    /// With the first byte of the marker.
    forms: Vec<(Form, u8)>,
    anchors: Anchors,
}

impl Guard {
    pub(super) fn new(mint: Mint) -> Guard {
        let mut forms = Vec::new();
        let mut anchors = Vec::new();
        // Base62 and base32 cores have the same marker.
        for core in [Core::Base62, Core::KeyId, Core::Uuid] {
            let marker: String = mint.marker(core).into_iter().map(char::from).collect();
            for form in Form::all(&marker) {
                let owner = u32::try_from(forms.len()).unwrap_or(u32::MAX);
                anchors.extend(form.anchors().into_iter().map(|anchor| (anchor, owner)));
                // The marker itself is short: the search finds it whole.
                if matches!(form, Form::Text(_)) {
                    anchors.retain(|(anchor, of)| *of != owner || !marker.as_bytes().starts_with(anchor));
                    anchors.push((marker.as_bytes()[..marker.len().min(6)].to_vec(), owner));
                }
                forms.push((form, marker.as_bytes()[0]));
            }
        }
        Guard { mint, forms, anchors: Anchors::new(anchors) }
    }

    pub(super) fn mint(&self) -> &Mint {
        &self.mint
    }

    /// Anchors with their owners, to be searched for together with others.
    pub(super) fn anchor_list(&self) -> Vec<(Vec<u8>, u32)> {
        self.anchors.list()
    }

    /// How many owners there are; others may be counted from here.
    pub(super) fn owners(&self) -> u32 {
        u32::try_from(self.forms.len()).unwrap_or(u32::MAX)
    }

    /// The core of what was found.
    pub(super) fn core(&self, owner: u32, found: &[u8]) -> Option<String> {
        let (form, first) = self.forms.get(owner as usize)?;
        let decoded = decode(form, *first, found);
        let length = self.mint.recognise(&decoded.text)?;
        Some(decoded.text[..length].iter().copied().map(char::from).collect())
    }

    /// Whether a find of this owner may stand there as it is, not encoded.
    pub(super) fn is_text(&self, owner: u32) -> bool {
        self.forms.get(owner as usize).is_some_and(|(form, _)| matches!(form, Form::Text(_)))
    }
}

impl Needles for Guard {
    fn anchors(&self) -> &Anchors {
        &self.anchors
    }

    fn check(&self, owner: u32, text: &[u8], more: bool) -> Check {
        let Some((form, first)) = self.forms.get(owner as usize) else { return Check::No };
        match form.check(text, more) {
            Check::Found(_) => {}
            other => return other,
        }
        let decoded = decode(form, *first, text);
        match self.mint.recognise(&decoded.text) {
            Some(length) => Check::Found(decoded.ends[length - 1]),
            None if decoded.short && more => Check::More,
            None => Check::No,
        }
    }
}

/// The text behind an encoding, as far as a core reaches.
struct Decoded {
    text: Vec<u8>,
    /// Where each byte of it ends in what it was written in.
    ends: Vec<usize>,
    /// Whether what it was written in ends before the longest core could.
    short: bool,
}

fn decode(form: &Form, first: u8, text: &[u8]) -> Decoded {
    let mut decoded = Decoded { text: Vec::with_capacity(64), ends: Vec::with_capacity(64), short: false };
    let mut at = 0;
    match form {
        Form::Text(_) => {
            while decoded.text.len() < Core::LONGEST {
                let Some(byte) = text.get(at) else {
                    decoded.short = true;
                    break;
                };
                let (mark, digits) = match byte {
                    b'%' => (1, 2),
                    b'\\' => (2, 4),
                    _ => (0, 0),
                };
                if digits == 0 {
                    decoded.text.push(*byte);
                    at += 1;
                } else {
                    let Some(digits) = text.get(at + mark..at + mark + digits) else {
                        decoded.short = true;
                        break;
                    };
                    let number =
                        std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok());
                    let Some(number) = number else { break };
                    decoded.text.push(number);
                    at += mark + digits.len();
                }
                decoded.ends.push(at);
            }
        }
        Form::Hex(_) => {
            while decoded.text.len() < Core::LONGEST {
                let Some(pair) = text.get(at..at + 2) else {
                    decoded.short = true;
                    break;
                };
                let number = std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
                let Some(number) = number else { break };
                decoded.text.push(number);
                at += 2;
                decoded.ends.push(at);
            }
        }
        Form::Base64 { before, .. } => {
            // What is spoilt by the bytes before is not needed: the marker is known, and put in again below.
            let spoilt = SPOILT[*before];
            let mut characters = vec![b'A'; spoilt];
            let mut ends = vec![0; spoilt];
            let wanted = (before + Core::LONGEST).div_ceil(3) * 4;
            while characters.len() < wanted {
                let Some(byte) = text.get(at) else {
                    decoded.short = true;
                    break;
                };
                let (character, length) = match (byte, text.get(at + 1..at + 3)) {
                    (b'\r' | b'\n', _) => (None, 1),
                    (b'\\', Some([b'r' | b'n', _])) => (None, 2),
                    (b'\\', Some([b'/', _])) => (Some(b'/'), 2),
                    (b'-', _) => (Some(b'+'), 1),
                    (b'_', _) => (Some(b'/'), 1),
                    (b'%', Some([b'2', b'B' | b'b'])) => (Some(b'+'), 3),
                    (b'%', Some([b'2', b'F' | b'f'])) => (Some(b'/'), 3),
                    (byte, _) if byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/') => (Some(*byte), 1),
                    (b'%' | b'\\', None) => {
                        decoded.short = true;
                        break;
                    }
                    _ => break,
                };
                at += length;
                if let Some(character) = character {
                    characters.push(character);
                    ends.push(at);
                }
            }
            if characters.len() % 4 == 1 {
                characters.pop();
            }
            let Ok(mut bytes) = LOOSE.decode(&characters) else { return decoded };
            if bytes.len() <= *before {
                return decoded;
            }
            // The first byte of the marker has bits in what is spoilt.
            if *before > 0 {
                bytes[*before] = first;
            }
            for (index, byte) in bytes.into_iter().enumerate().skip(*before) {
                decoded.text.push(byte);
                let last = (index + 1) * 8;
                decoded.ends.push(ends[(last.div_ceil(6) - 1).min(ends.len() - 1)]);
            }
        }
    }
    decoded
}
