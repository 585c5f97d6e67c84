//! Extended headers (POSIX pax): `length key=value` records. Values may be any bytes.

/// Appends one record.
pub(super) fn record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    // The length counts its own digits.
    let mut digits = 1;
    while (rest + digits).to_string().len() != digits {
        digits += 1;
    }
    out.extend_from_slice((rest + digits).to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Reads all records.
pub(super) fn records(mut bytes: &[u8]) -> Option<Vec<(&str, &[u8])>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
        let len: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let (record, rest) = bytes.split_at_checked(len)?;
        let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        records.push((std::str::from_utf8(&record[..equals]).ok()?, &record[equals + 1..]));
        bytes = rest;
    }
    Some(records)
}

/// A time as seconds with a fraction.
pub(super) fn time((seconds, nanos): (i64, u32)) -> String {
    if nanos == 0 {
        return seconds.to_string();
    }
    // Before 1970 the fraction counts away from zero as well.
    let (whole, part) = if seconds < 0 { (seconds + 1, 1_000_000_000 - nanos) } else { (seconds, nanos) };
    let sign = if seconds < 0 { "-" } else { "" };
    format!("{sign}{}.{part:09}", whole.unsigned_abs())
}

/// Reads what [`time`] writes, and fewer or more digits.
pub(super) fn parse_time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanos: u32 = format!("{part:0<9}").get(..9)?.parse().ok()?;
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back() {
        let mut bytes = Vec::new();
        // Around the lengths at which the length gains a digit.
        for len in (0..15).chain(85..105).chain(985..1005) {
            record(&mut bytes, "key", &vec![b'\n'; len]);
        }
        let lens: Vec<usize> = records(&bytes).unwrap().iter().map(|(_, value)| value.len()).collect();
        assert_eq!(lens, (0..15).chain(85..105).chain(985..1005).collect::<Vec<_>>());
        assert!(records(&bytes[..bytes.len() - 1]).is_none());
        for wrong in [&b"5 a=b\n"[..], b"99 a=b\n", b"0 a=b\n", b"a=b\n", b"7 a=b\nx", b"6  ab\n"] {
            assert!(records(wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn times_come_back() {
        for time in [(0, 0), (0, 1), (5, 999_999_999), (-1, 0), (-1, 1), (-5, 999_999_999), (i64::MAX, 5), (-1_000, 7)]
        {
            assert_eq!(parse_time(super::time(time).as_bytes()), Some(time), "{time:?}");
        }
        assert_eq!(parse_time(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(parse_time(b"1.0000000019"), Some((1, 1)));
        for wrong in ["", "-", "1.x", "x", "99999999999999999999", "1e5"] {
            assert_eq!(parse_time(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
