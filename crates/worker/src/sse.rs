//! Server-sent events, with a bound on what one message may occupy.

use bytes::{Buf as _, BytesMut};

/// One message: its `event:` name (absent when the line was) and its `data:` lines joined by newlines.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) event: Option<String>,
    pub(crate) data: Vec<u8>,
}

/// A message grew past the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a streamed message is larger than {0} bytes")]
pub(crate) struct TooLong(pub(crate) usize);

/// Cuts a byte stream into messages. Comments, `id:` and `retry:` are dropped: the protocol gives them no meaning.
#[derive(Debug)]
pub(crate) struct Decoder {
    buffer: BytesMut,
    /// How much of `buffer` is known to hold no line end, so that a long line is not searched again at every chunk.
    searched: usize,
    event: Option<String>,
    data: Vec<u8>,
    has_data: bool,
    limit: usize,
}

impl Decoder {
    pub(crate) fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), searched: 0, event: None, data: Vec::new(), has_data: false, limit }
    }

    pub(crate) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next complete message, `None` when more bytes are needed.
    pub(crate) fn next(&mut self) -> Result<Option<Message>, TooLong> {
        loop {
            let Some(at) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') else {
                self.searched = self.buffer.len();
                return if self.searched + self.data.len() > self.limit { Err(TooLong(self.limit)) } else { Ok(None) };
            };
            let end = self.searched + at;
            self.searched = 0;
            let line = self.buffer.split_to(end);
            self.buffer.advance(1);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if line.is_empty() {
                let event = self.event.take();
                if std::mem::take(&mut self.has_data) {
                    return Ok(Some(Message { event, data: std::mem::take(&mut self.data) }));
                }
                continue;
            }
            let (field, value) = match line.iter().position(|&byte| byte == b':') {
                Some(colon) => (&line[..colon], line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..])),
                None => (line, &b""[..]),
            };
            match field {
                b"data" => {
                    if self.data.len() + value.len() > self.limit {
                        return Err(TooLong(self.limit));
                    }
                    if self.has_data {
                        self.data.push(b'\n');
                    }
                    self.data.extend_from_slice(value);
                    self.has_data = true;
                }
                b"event" => self.event = Some(String::from_utf8_lossy(value).into_owned()),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_any_chunking() {
        let text = b": hello\r\nevent: a\ndata: {\"x\":\ndata: 1}\n\nid: 7\n\ndata:bare\n\nevent: ping\ndata: {}\n\n";
        for size in 1..text.len() {
            let mut decoder = Decoder::new(1024);
            let mut found = Vec::new();
            for chunk in text.chunks(size) {
                decoder.push(chunk);
                while let Some(message) = decoder.next().unwrap() {
                    found.push((message.event, String::from_utf8(message.data).unwrap()));
                }
            }
            assert_eq!(
                found,
                [(Some("a".into()), "{\"x\":\n1}".into()), (None, "bare".into()), (Some("ping".into()), "{}".into())]
            );
        }
    }

    #[test]
    fn an_endless_line_and_an_endless_message_are_refused() {
        let mut decoder = Decoder::new(100);
        decoder.push(&[b'x'; 101]);
        assert_eq!(decoder.next().unwrap_err(), TooLong(100));
        let mut decoder = Decoder::new(100);
        for _ in 0..30 {
            decoder.push(b"data: 12345\n");
        }
        assert!(decoder.next().is_err());
    }
}
