//! The ways in which one text may be written: as it is, percent-encoded, escaped for JSON or HTML, in base64, in hex.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use zeroize::Zeroizing;

use super::scan::Check;

/// One way of writing one text.
pub(super) enum Form {
    /// Each character as it is or in any escape.
    Text(Zeroizing<Vec<char>>),
    /// The characters that are the same whatever stands before and after, when so many bytes modulo three stand before.
    Base64 { core: Zeroizing<Vec<u8>>, before: usize },
    /// In lower case.
    Hex(Zeroizing<Vec<u8>>),
}

/// How many characters of base64 are spoilt by what stands before.
pub(super) const SPOILT: [usize; 3] = [0, 2, 3];

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The characters of `text` in base64 that are its own, with `before` bytes in front of it.
pub(super) fn base64_core(text: &[u8], before: usize) -> Zeroizing<Vec<u8>> {
    let mut padded = Zeroizing::new(vec![0; before]);
    padded.extend_from_slice(text);
    let encoded = Zeroizing::new(STANDARD_NO_PAD.encode(&padded[..]).into_bytes());
    let whole = padded.len() * 8 / 6;
    Zeroizing::new(encoded[SPOILT[before]..whole].to_vec())
}

/// In lower case.
pub(super) fn hex(text: &[u8]) -> Vec<u8> {
    text.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]).collect()
}

impl Form {
    /// All of them for `text`.
    pub(super) fn all(text: &str) -> Vec<Form> {
        let mut forms = vec![Form::Text(Zeroizing::new(text.chars().collect()))];
        forms.extend((0..3).map(|before| Form::Base64 { core: base64_core(text.as_bytes(), before), before }));
        forms.push(Form::Hex(Zeroizing::new(hex(text.as_bytes()))));
        forms
    }

    /// What any occurrence in this form begins with.
    pub(super) fn anchors(&self) -> Vec<Vec<u8>> {
        match self {
            Form::Text(characters) => text_anchors(characters),
            Form::Hex(digits) => {
                let head = &digits[..digits.len().min(6)];
                vec![head.to_vec(), head.to_ascii_uppercase()]
            }
            Form::Base64 { core, before } => {
                let head = &core[..core.len().min(4)];
                let mut anchors = vec![head.to_vec()];
                // Lines are broken between groups of four characters only.
                let first = (4 - SPOILT[*before]) % 4;
                if first != 0 {
                    for line in ["\n", "\r\n", "\\n", "\\r\\n"] {
                        anchors.push([&core[..first], line.as_bytes(), &core[first..first + 1]].concat());
                    }
                }
                // Each `+` and `/` may be written otherwise: all ways for the first, and nothing from the second on.
                let mut all = Vec::new();
                for anchor in anchors {
                    let special = |byte: &u8| matches!(byte, b'+' | b'/');
                    let Some(at) = anchor.iter().position(special) else {
                        all.push(anchor);
                        continue;
                    };
                    let others: &[&[u8]] = if anchor[at] == b'+' {
                        &[b"+", b"-", b"%2B", b"%2b", b"\\u002b", b"\\u002B"]
                    } else {
                        &[b"/", b"_", b"%2F", b"%2f", b"\\/", b"\\u002f", b"\\u002F"]
                    };
                    let rest = &anchor[at + 1..];
                    let rest = &rest[..rest.iter().position(special).unwrap_or(rest.len())];
                    all.extend(others.iter().map(|other| [&anchor[..at], *other, rest].concat()));
                }
                all
            }
        }
    }

    /// Whether `text` begins with it.
    pub(super) fn check(&self, text: &[u8], more: bool) -> Check {
        match self {
            Form::Text(characters) => text_at(characters, text, more),
            Form::Hex(digits) => {
                let shared = digits.len().min(text.len());
                if !digits[..shared].eq_ignore_ascii_case(&text[..shared]) {
                    Check::No
                } else if shared == digits.len() {
                    Check::Found(shared)
                } else if more {
                    Check::More
                } else {
                    Check::No
                }
            }
            Form::Base64 { core, .. } => base64_at(core, text, more),
        }
    }
}

fn base64_at(core: &[u8], text: &[u8], more: bool) -> Check {
    let short = if more { Check::More } else { Check::No };
    let mut at = 0;
    for (index, wanted) in core.iter().enumerate() {
        if index > 0 {
            loop {
                match text.get(at) {
                    Some(b'\r' | b'\n') => at += 1,
                    Some(b'\\') => match text.get(at + 1) {
                        Some(b'r' | b'n') => at += 2,
                        None => return short,
                        Some(_) => break,
                    },
                    _ => break,
                }
            }
        }
        let others: &[&[u8]] = match wanted {
            b'+' => &[b"+", b"-", b"%2b", b"\\u002b"],
            b'/' => &[b"/", b"_", b"%2f", b"\\/", b"\\u002f"],
            _ => &[],
        };
        let rest = &text[at.min(text.len())..];
        if rest.is_empty() {
            return short;
        }
        if others.is_empty() {
            if rest[0] != *wanted {
                return Check::No;
            }
            at += 1;
            continue;
        }
        match others.iter().map(|other| literal(other, rest, true)).find(|check| *check != Check::No) {
            Some(Check::Found(length)) => at += length,
            Some(Check::More) => return short,
            _ => return Check::No,
        }
    }
    Check::Found(at)
}

/// Whether `text` begins with `wanted`; letters of any case with `any_case`.
fn literal(wanted: &[u8], text: &[u8], any_case: bool) -> Check {
    let shared = wanted.len().min(text.len());
    let (a, b) = (&wanted[..shared], &text[..shared]);
    let same = if any_case { a.eq_ignore_ascii_case(b) } else { a == b };
    match (same, shared == wanted.len()) {
        (false, _) => Check::No,
        (true, true) => Check::Found(shared),
        (true, false) => Check::More,
    }
}

/// The ways to write one character other than as it is. Hex digits in lower case; they may come in either.
fn escapes(character: char) -> Vec<Vec<u8>> {
    let mut buffer = [0; 4];
    let bytes = character.encode_utf8(&mut buffer).as_bytes();
    let mut all = vec![bytes.iter().flat_map(|byte| [vec![b'%'], hex(&[*byte])].concat()).collect::<Vec<u8>>()];
    let mut units = [0; 2];
    let units = character.encode_utf16(&mut units);
    all.push(units.iter().flat_map(|unit| [b"\\u".to_vec(), hex(&unit.to_be_bytes())].concat()).collect());
    let short = match character {
        '"' | '\\' | '/' | '\'' => Some(character),
        '\n' => Some('n'),
        '\r' => Some('r'),
        '\t' => Some('t'),
        _ => None,
    };
    if let Some(short) = short {
        all.push(format!("\\{short}").into_bytes());
    }
    if character == ' ' {
        all.push(b"+".to_vec());
    }
    if !character.is_alphanumeric() && !matches!(character, '-' | '_' | '.') {
        all.push(format!("&#{};", u32::from(character)).into_bytes());
        all.push(format!("&#x{:x};", u32::from(character)).into_bytes());
        let named = match character {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            '"' => "&quot;",
            '\'' => "&apos;",
            _ => "",
        };
        if !named.is_empty() {
            all.push(named.into());
        }
    }
    all
}

/// So many characters are looked at for an anchor; an escape in one of them ends it.
const ANCHORED: usize = 4;

fn text_anchors(characters: &[char]) -> Vec<Vec<u8>> {
    let mut anchors = Vec::new();
    let mut before = Vec::new();
    for character in characters.iter().take(ANCHORED) {
        for escape in escapes(*character) {
            let anchor = [before.as_slice(), &escape].concat();
            // Hex digits after the mark of an escape come in either case; all else as it is.
            let upper: Vec<u8> = [before.as_slice(), &upper_digits(&escape)].concat();
            if upper != anchor {
                anchors.push(upper);
            }
            anchors.push(anchor);
        }
        let mut buffer = [0; 4];
        before.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
    }
    anchors.push(before);
    anchors
}

fn upper_digits(escape: &[u8]) -> Vec<u8> {
    let digits = |byte: &u8| if byte.is_ascii_hexdigit() { byte.to_ascii_uppercase() } else { *byte };
    if escape.starts_with(b"%") || escape.starts_with(b"\\u") || escape.starts_with(b"&#x") {
        escape.iter().map(digits).collect()
    } else {
        escape.to_vec()
    }
}

fn text_at(characters: &[char], text: &[u8], more: bool) -> Check {
    // More than one place is possible only where a character is itself the mark of an escape.
    let mut places = vec![0_usize];
    let mut next = Vec::new();
    let mut partial = false;
    for character in characters {
        next.clear();
        for at in &places {
            let rest = &text[*at..];
            let mut buffer = [0; 4];
            let plain = character.encode_utf8(&mut buffer).as_bytes();
            let mut add = |check: Check| match check {
                Check::No => {}
                Check::More => partial = true,
                Check::Found(length) => {
                    if !next.contains(&(at + length)) {
                        next.push(at + length);
                    }
                }
            };
            add(literal(plain, rest, false));
            // The marks of escapes, so that text without them costs nothing.
            if matches!(rest.first(), None | Some(b'%' | b'\\' | b'&' | b'+')) {
                for escape in escapes(*character) {
                    add(literal(&escape, rest, true));
                }
            }
        }
        if next.is_empty() {
            return if partial && more { Check::More } else { Check::No };
        }
        std::mem::swap(&mut places, &mut next);
    }
    if partial && more {
        return Check::More;
    }
    places.into_iter().max().map_or(Check::No, Check::Found)
}
