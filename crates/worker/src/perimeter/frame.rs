//! What is said on a connection that a request has turned into a stream: a kind (one byte), a length (four bytes, big-endian)
//! and as many bytes.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The longest payload, in bytes.
const LONGEST: usize = 1 << 20;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To the command: input. None ends it.
    Stdin,
    /// To the command: a terminal's new size, as JSON.
    Resize,
    /// To the command: a signal's number, as JSON.
    Signal,
    /// From the command: standard output, a terminal's output, or what came through a connection.
    Stdout,
    /// From the command: standard error.
    Stderr,
    /// From the command: how many bytes fell out before they could be sent, as JSON.
    Lost,
    /// The first frame: the command's number in its sandbox, as JSON.
    Started,
    /// The last frame: how it ended, as JSON.
    Exit,
    /// The last frame: why there is nothing to hear, as text.
    Failed,
}

const KINDS: [(u8, Kind); 9] = [
    (0, Kind::Stdin),
    (1, Kind::Resize),
    (2, Kind::Signal),
    (16, Kind::Stdout),
    (17, Kind::Stderr),
    (18, Kind::Lost),
    (19, Kind::Started),
    (20, Kind::Exit),
    (21, Kind::Failed),
];

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Its bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame of bytes.
    pub fn new(kind: Kind, payload: impl Into<Vec<u8>>) -> Frame {
        Frame { kind, payload: payload.into() }
    }

    /// A frame of JSON.
    pub fn json(kind: Kind, value: &impl serde::Serialize) -> Frame {
        Frame { kind, payload: serde_json::to_vec(value).unwrap_or_default() }
    }

    /// Reads a frame; none at the end of the stream.
    ///
    /// # Errors
    /// When the stream fails, or holds no frame.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
        let mut head = [0; 5];
        match from.read_exact(&mut head).await {
            Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        };
        let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let [kind, length @ ..] = head;
        let kind = KINDS.iter().find(|(number, _)| *number == kind).ok_or_else(|| wrong("a frame of no known kind"))?;
        let length = u32::from_be_bytes(length) as usize;
        if length > LONGEST {
            return Err(wrong("a frame that is too long"));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload).await?;
        Ok(Some(Frame { kind: kind.1, payload }))
    }

    /// Writes the frame.
    ///
    /// # Errors
    /// When the stream fails, or the frame is too long.
    pub async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let length = u32::try_from(self.payload.len()).ok().filter(|length| *length as usize <= LONGEST);
        let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a frame that is too long"))?;
        let kind = KINDS.iter().find(|(_, kind)| *kind == self.kind).map_or(u8::MAX, |(number, _)| *number);
        let mut bytes = Vec::with_capacity(5 + self.payload.len());
        bytes.push(kind);
        bytes.extend(length.to_be_bytes());
        bytes.extend(&self.payload);
        to.write_all(&bytes).await?;
        to.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_back_and_nonsense_does_not() {
        let mut bytes = Vec::new();
        for (_, kind) in KINDS {
            Frame::new(kind, b"abc").write(&mut bytes).await.unwrap();
        }
        let mut rest = &bytes[..];
        for (_, kind) in KINDS {
            assert_eq!(Frame::read(&mut rest).await.unwrap(), Some(Frame::new(kind, b"abc")));
        }
        assert_eq!(Frame::read(&mut rest).await.unwrap(), None);
        for nonsense in [&[9, 0, 0, 0, 0][..], &[0, 255, 255, 255, 255], &[0, 0, 0, 0, 2, 1]] {
            let mut nonsense = nonsense;
            assert!(Frame::read(&mut nonsense).await.is_err());
        }
    }
}
