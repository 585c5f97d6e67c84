//! A client of the admin API, for the commands of this program.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use palisade_checkpoint::Checkpoint;
use palisade_sandbox::Process;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::body::{PIECES, Pieces, Whole};
use super::exec::PROTOCOL;
use super::frame::Frame;
use super::gate;
use crate::ssh::Issued;

use super::wire::{
    AllowedBody, ArchiveBody, ArchivedBody, AttachBody, CheckpointBody, ConnectBody, CredentialsBody, ExecBody,
    HibernatedBody, ReferenceBody, RestoreBody, ResumedBody, RevokedBody, SessionBody, SignalBody,
};

/// Why the worker did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the socket.
    #[error("no worker answers at {path}: {cause}")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The worker refused.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// The conversation broke off.
    #[error("talking to the worker: {0}")]
    Broken(String),
}

fn broken(why: impl std::fmt::Display) -> ClientError {
    ClientError::Broken(why.to_string())
}

/// A worker's admin API.
#[derive(Debug, Clone)]
pub struct Client {
    state_dir: PathBuf,
}

/// A command's stream: frames both ways.
#[derive(Debug)]
pub struct Stream {
    /// Frames of the worker.
    pub reader: ReadHalf<TokioIo<Upgraded>>,
    /// Frames for it.
    pub writer: WriteHalf<TokioIo<Upgraded>>,
}

impl Stream {
    /// The next frame; none at the end.
    ///
    /// # Errors
    /// When the connection breaks off.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        Frame::read(&mut self.reader).await
    }
}

impl Client {
    /// The worker with this state directory. Nothing is sent yet.
    pub fn new(state_dir: impl Into<PathBuf>) -> Client {
        Client { state_dir: state_dir.into() }
    }

    fn path(session: &str, rest: &str) -> String {
        format!("/perimeter/v1/sessions/{}{rest}", utf8_percent_encode(session, NON_ALPHANUMERIC))
    }

    async fn send<B>(&self, request: Request<B>) -> Result<Response<hyper::body::Incoming>, ClientError>
    where
        B: http_body::Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let unreachable = |cause| ClientError::Unreachable { path: super::socket(&self.state_dir), cause };
        let (_directory, short) = gate::short(&self.state_dir).map_err(unreachable)?;
        let stream = UnixStream::connect(short).await.map_err(unreachable)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Lives as long as the conversation does.
        tokio::spawn(connection.with_upgrades());
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
        let parsed: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let message = parsed["error"]["message"].as_str().unwrap_or("it said no more than that it cannot").to_owned();
        Err(ClientError::Refused { status, message })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let request = Request::builder().uri(path).header("host", "perimeter");
        let response = self.send(request.body(Whole(None)).map_err(broken)?).await?;
        let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
        serde_json::from_slice(&body).map_err(broken)
    }

    /// The sessions that are served.
    ///
    /// # Errors
    /// When the worker cannot be reached.
    pub async fn sessions(&self) -> Result<Vec<SessionBody>, ClientError> {
        self.get::<List<SessionBody>>("/perimeter/v1/sessions").await.map(|list| list.data)
    }

    /// One session.
    ///
    /// # Errors
    /// When the worker cannot be reached or does not serve it.
    pub async fn session(&self, session: &str) -> Result<SessionBody, ClientError> {
        self.get(&Client::path(session, "")).await
    }

    /// The processes of a session's sandbox.
    ///
    /// # Errors
    /// When the worker cannot be reached or the session has no sandbox.
    pub async fn processes(&self, session: &str) -> Result<Vec<Process>, ClientError> {
        self.get::<List<Process>>(&Client::path(session, "/processes")).await.map(|list| list.data)
    }

    /// Sends a signal to a command.
    ///
    /// # Errors
    /// When the worker cannot be reached or the session has no sandbox.
    pub async fn signal(&self, session: &str, signal: &SignalBody) -> Result<(), ClientError> {
        self.post(session, "/signal", Some(signal)).await.map(drop)
    }

    async fn post(&self, session: &str, what: &str, body: Option<&impl Serialize>) -> Result<Bytes, ClientError> {
        self.post_to(&Client::path(session, what), body).await
    }

    async fn post_to(&self, path: &str, body: Option<&impl Serialize>) -> Result<Bytes, ClientError> {
        let request = Request::post(path).header("host", "perimeter");
        let body = body.map(serde_json::to_vec).transpose().map_err(broken)?;
        let response = self.send(request.body(Whole(body.map(Into::into))).map_err(broken)?).await?;
        Ok(response.into_body().collect().await.map_err(broken)?.to_bytes())
    }

    /// The worker's credentials, without their values, and how the sources of these fare.
    ///
    /// # Errors
    /// When the worker cannot be reached, or sends nothing out.
    pub async fn credentials(&self) -> Result<CredentialsBody, ClientError> {
        self.get("/perimeter/v1/credentials").await
    }

    /// Moves what is old out of the worker's audit trail.
    ///
    /// # Errors
    /// When the worker cannot be reached, sends nothing out, or cannot write there.
    pub async fn archive(&self, body: &ArchiveBody) -> Result<ArchivedBody, ClientError> {
        serde_json::from_slice(&self.post_to("/perimeter/v1/trail/archive", Some(body)).await?).map_err(broken)
    }

    /// Takes a secret from all sessions, from the next request on.
    ///
    /// # Errors
    /// When the worker cannot be reached, or has no such credential.
    pub async fn revoke(&self, body: &ReferenceBody) -> Result<RevokedBody, ClientError> {
        serde_json::from_slice(&self.post_to("/perimeter/v1/credentials/revoke", Some(body)).await?).map_err(broken)
    }

    /// Undoes [`Client::revoke`].
    ///
    /// # Errors
    /// When the worker cannot be reached, or nothing of the kind is revoked.
    pub async fn allow(&self, body: &ReferenceBody) -> Result<AllowedBody, ClientError> {
        serde_json::from_slice(&self.post_to("/perimeter/v1/credentials/allow", Some(body)).await?).map_err(broken)
    }

    /// Takes a checkpoint of a session's workspace.
    ///
    /// # Errors
    /// When the worker cannot be reached, does not serve the session, or cannot take one.
    pub async fn checkpoint(&self, session: &str, body: &CheckpointBody) -> Result<Checkpoint, ClientError> {
        serde_json::from_slice(&self.post(session, "/checkpoints", Some(body)).await?).map_err(broken)
    }

    /// Brings a session's workspace back to a checkpoint; all its processes end.
    ///
    /// # Errors
    /// When the worker cannot be reached, does not serve the session, or the checkpoint cannot be read.
    pub async fn restore(&self, session: &str, body: &RestoreBody) -> Result<(), ClientError> {
        self.post(session, "/restore", Some(body)).await.map(drop)
    }

    /// Stops everything in a session's sandbox where it is.
    ///
    /// # Errors
    /// When the worker cannot be reached, does not serve the session, or its sandbox cannot be frozen.
    pub async fn pause(&self, session: &str) -> Result<(), ClientError> {
        self.post(session, "/pause", None::<&()>).await.map(drop)
    }

    /// Takes a checkpoint of a session and puts it to disk until it is resumed, with its processes where its driver can do that.
    ///
    /// # Errors
    /// When the worker cannot be reached, does not serve the session, or cannot put it to disk; then it goes on.
    pub async fn hibernate(&self, session: &str) -> Result<HibernatedBody, ClientError> {
        serde_json::from_slice(&self.post(session, "/hibernate", None::<&()>).await?).map_err(broken)
    }

    /// Lets a session go on.
    ///
    /// # Errors
    /// When the worker cannot be reached or does not serve the session.
    pub async fn resume(&self, session: &str) -> Result<ResumedBody, ClientError> {
        serde_json::from_slice(&self.post(session, "/resume", None::<&()>).await?).map_err(broken)
    }

    /// A key and a certificate for SSH into a session.
    ///
    /// # Errors
    /// When the worker cannot be reached, does not serve the session, or serves no SSH.
    pub async fn ssh_certificate(&self, session: &str) -> Result<Issued, ClientError> {
        serde_json::from_slice(&self.post(session, "/ssh-certificate", None::<&()>).await?).map_err(broken)
    }

    async fn upgrade(&self, path: String, body: &impl Serialize) -> Result<TokioIo<Upgraded>, ClientError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("host", "perimeter")
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, PROTOCOL)
            .header(CONTENT_TYPE, "application/json");
        let body = Bytes::from(serde_json::to_vec(body).map_err(broken)?);
        let length = body.len();
        let request = request.header("content-length", length).body(Whole(Some(body))).map_err(broken)?;
        let response = self.send(request).await?;
        let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
        Ok(TokioIo::new(upgraded))
    }

    async fn stream(&self, path: String, body: &impl Serialize) -> Result<Stream, ClientError> {
        let (reader, writer) = tokio::io::split(self.upgrade(path, body).await?);
        Ok(Stream { reader, writer })
    }

    /// Runs a command.
    ///
    /// # Errors
    /// When the worker cannot be reached or the session has no sandbox.
    pub async fn exec(&self, session: &str, body: &ExecBody) -> Result<Stream, ClientError> {
        self.stream(Client::path(session, "/exec"), body).await
    }

    /// Listens to a command, from the byte at `from` on, or from the first that is kept; `hold` has it wait for this listener.
    ///
    /// # Errors
    /// When the worker cannot be reached or the session has no sandbox.
    pub async fn attach(
        &self,
        session: &str,
        process: u64,
        from: Option<u64>,
        hold: bool,
    ) -> Result<Stream, ClientError> {
        self.stream(Client::path(session, "/attach"), &AttachBody { process, from, hold }).await
    }

    /// Connects to a port inside.
    ///
    /// # Errors
    /// When the worker cannot be reached, refuses, or the session has no sandbox.
    pub async fn connect(
        &self,
        session: &str,
        body: &ConnectBody,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static, ClientError> {
        self.upgrade(Client::path(session, "/connect"), body).await
    }

    fn files(session: &str, path: &str) -> String {
        Client::path(session, &format!("/files?path={}", utf8_percent_encode(path, NON_ALPHANUMERIC)))
    }

    /// Writes what is at a path of the sandbox to `to`, as a tar stream.
    ///
    /// # Errors
    /// When it is not there, or the transfer breaks off; `to` then holds a part.
    pub async fn copy_out(
        &self,
        session: &str,
        path: &str,
        mut to: impl AsyncWrite + Unpin,
    ) -> Result<(), ClientError> {
        let request = Request::get(Client::files(session, path)).header("host", "perimeter");
        let mut body = self.send(request.body(Whole(None)).map_err(broken)?).await?.into_body();
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|_| broken("the sandbox broke the archive off: something in it cannot be read"))?;
            if let Some(bytes) = frame.data_ref() {
                to.write_all(bytes).await.map_err(broken)?;
            }
        }
        to.shutdown().await.map_err(broken)
    }

    /// Unpacks a tar stream at a path of the sandbox.
    ///
    /// # Errors
    /// When it is refused, or `from` fails.
    pub async fn copy_in(
        &self,
        session: &str,
        path: &str,
        mut from: impl AsyncRead + Unpin + Send + 'static,
    ) -> Result<(), ClientError> {
        let (sender, pieces) = mpsc::channel(PIECES);
        let reading = tokio::spawn(async move {
            loop {
                let mut piece = vec![0; 64 << 10];
                let read = from.read(&mut piece).await;
                let last = !matches!(read, Ok(1..));
                let piece = match read {
                    Ok(0) => return,
                    Ok(read) => {
                        piece.truncate(read);
                        Ok(piece.into())
                    }
                    Err(why) => Err(why),
                };
                // Nobody who wants more has refused the rest.
                if sender.send(piece).await.is_err() || last {
                    return;
                }
            }
        });
        let request = Request::put(Client::files(session, path)).header("host", "perimeter");
        let done = self.send(request.body(Pieces(pieces)).map_err(broken)?).await.map(drop);
        reading.abort();
        done
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }
}

#[derive(serde::Deserialize)]
struct List<T> {
    data: Vec<T>,
}
