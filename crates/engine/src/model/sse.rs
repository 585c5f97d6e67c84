//! Server-sent events, from bytes.

/// The longest message, in bytes. The largest that an honest provider sends is a server tool's whole result.
const LONGEST: usize = 16 * 1024 * 1024;

/// A message of the stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SseMessage {
    /// The `event` field; empty when there was none.
    pub(super) event: String,
    /// The `data` lines, joined by line feeds.
    pub(super) data: Vec<u8>,
}

/// A message exceeds what is kept of one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// Takes bytes as they come, gives whole messages. The format is the HTML standard's, section "server-sent events".
#[derive(Debug, Default)]
pub(super) struct SseParser {
    line: Vec<u8>,
    message: SseMessage,
    has_data: bool,
    after_cr: bool,
    past_bom: bool,
}

impl SseParser {
    /// Takes the next bytes; whole messages are added to `messages`.
    pub(super) fn push(&mut self, bytes: &[u8], messages: &mut Vec<SseMessage>) -> Result<(), TooLong> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if std::mem::take(&mut self.after_cr) && rest[0] == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let Some(end) = rest.iter().position(|&byte| byte == b'\n' || byte == b'\r') else {
                self.line.extend_from_slice(rest);
                return self.fits();
            };
            self.line.extend_from_slice(&rest[..end]);
            self.after_cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            self.fits()?;
            self.end_of_line(messages);
        }
        Ok(())
    }

    fn fits(&self) -> Result<(), TooLong> {
        if self.line.len() + self.message.data.len() > LONGEST { Err(TooLong) } else { Ok(()) }
    }

    fn end_of_line(&mut self, messages: &mut Vec<SseMessage>) {
        let mut line = self.line.as_slice();
        if !std::mem::replace(&mut self.past_bom, true) {
            line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        }
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            if std::mem::take(&mut self.has_data) {
                messages.push(message);
            }
        } else {
            let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
            let value = line.get(colon + 1..).unwrap_or_default();
            let value = value.strip_prefix(b" ").unwrap_or(value);
            // A line that starts with a colon is a comment: its field has no name.
            match &line[..colon] {
                b"event" => self.message.event = String::from_utf8_lossy(value).into_owned(),
                b"data" => {
                    if std::mem::replace(&mut self.has_data, true) {
                        self.message.data.push(b'\n');
                    }
                    self.message.data.extend_from_slice(value);
                }
                _ => {}
            }
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_gives_the_same_messages() {
        let stream = "\u{feff}: hello\r\nevent: a\r\ndata: {\"é\":1}\r\n\r\nevent: lost\n\ndata:one\rdata: two\r\rid: 1\ndata\n\ndata: cut";
        let message = |event: &str, data: &str| SseMessage { event: event.into(), data: data.into() };
        let expected = [message("a", "{\"é\":1}"), message("", "one\ntwo"), message("", "")];
        for size in 1..=stream.len() {
            let (mut parser, mut messages) = (SseParser::default(), Vec::new());
            for piece in stream.as_bytes().chunks(size) {
                parser.push(piece, &mut messages).unwrap();
            }
            assert_eq!(messages, expected, "pieces of {size}");
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let (mut parser, mut messages) = (SseParser::default(), Vec::new());
        let piece = vec![b'x'; LONGEST / 2 + 1];
        assert_eq!(parser.push(&piece, &mut messages), Ok(()));
        assert_eq!(parser.push(&piece, &mut messages), Err(TooLong));
    }
}
