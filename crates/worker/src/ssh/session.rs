//! One SSH connection: its holder's certificate, commands, terminals and forwarded ports.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use palisade_sandbox::{ExecRequest, Input, Output, Sandbox, Size};
use russh::keys::Certificate;
use russh::server::{Auth, ChannelOpenHandle, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf, Pty, Sig};
use tokio_util::sync::CancellationToken;

use super::Authority;
use crate::pace::unix_now;
use crate::perimeter::Registry;

/// What is run when no command is named.
const SHELL: &str = "command -v bash >/dev/null && exec bash -l; exec sh -l";
/// The exit status when there is none of the command's own, as ssh(1) has it.
const FAILED: u32 = 255;
/// Channels of one connection at the same time.
const MOST: usize = 32;

/// The server's side of one connection.
pub(super) struct Handler {
    peer: SocketAddr,
    authority: Arc<Authority>,
    registry: Registry,
    /// The session that the certificate names, once it was shown.
    session: Option<Arc<str>>,
    /// Cancelled once it was shown.
    admitted: CancellationToken,
    channels: Arc<tokio::sync::Semaphore>,
}

impl Handler {
    pub(super) fn new(
        peer: SocketAddr,
        authority: Arc<Authority>,
        registry: Registry,
        admitted: CancellationToken,
    ) -> Handler {
        let channels = Arc::new(tokio::sync::Semaphore::new(MOST));
        Handler { peer, authority, registry, session: None, admitted, channels }
    }

    fn note(&self, session: &str, action: &str, what: &str) {
        tracing::info!(target: "audit", peer = %self.peer, session, action, what, "ssh");
    }

    /// The sandbox that the certificate is for, if it is up.
    async fn sandbox(&self) -> Option<Arc<Sandbox>> {
        self.registry.find(self.session.as_deref()?)?.hands.live().await
    }
}

impl russh::server::Handler for Handler {
    type Error = russh::Error;

    async fn auth_openssh_certificate(&mut self, user: &str, certificate: &Certificate) -> Result<Auth, russh::Error> {
        let admitted = match self.registry.find(user) {
            Some(_) => self.authority.admits(user, certificate, unix_now()),
            None => Err("this worker does not serve the session"),
        };
        match admitted {
            Ok(()) => {
                self.note(user, "ssh login", certificate.key_id());
                self.session = Some(user.into());
                self.admitted.cancel();
                Ok(Auth::Accept)
            }
            Err(why) => {
                self.note(user, "ssh login refused", why);
                Ok(Auth::reject())
            }
        }
    }

    async fn auth_publickey(&mut self, user: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        self.note(user, "ssh login refused", "a key without a certificate");
        Ok(Auth::reject())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        let place = self.channels.clone().try_acquire_owned();
        match (self.sandbox().await, place) {
            (Some(sandbox), Ok(place)) => {
                reply.accept().await;
                let (session, peer) = (self.session.clone().unwrap_or_default(), self.peer);
                // Whoever asks for nothing must not keep the sandbox.
                let sandbox = Arc::downgrade(&sandbox);
                // It ends with the channel, which ends with the connection.
                tokio::spawn(async move {
                    attend(channel, sandbox, &session, peer).await;
                    drop(place);
                });
            }
            _ => reply.reject(ChannelOpenFailure::ResourceShortage).await,
        }
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        let session = self.session.clone().unwrap_or_default();
        let inside = matches!(host, "localhost" | "127.0.0.1" | "::1");
        self.note(&session, if inside { "ssh forward" } else { "ssh forward refused" }, &format!("{host}:{port}"));
        let (Some(port), true) = (u16::try_from(port).ok().filter(|port| *port > 0), inside) else {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        };
        let place = self.channels.clone().try_acquire_owned();
        let (Some(sandbox), Ok(place)) = (self.sandbox().await, place) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        match sandbox.connect(port).await {
            Ok(connection) => {
                reply.accept().await;
                tokio::spawn(async move {
                    if let Err(error) = connection.relay(channel.into_stream()).await {
                        tracing::debug!(%error, "a forwarded connection ended");
                    }
                    drop(place);
                });
            }
            Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
        }
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }

    async fn exec_request(&mut self, channel: ChannelId, _: &[u8], session: &mut Session) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(channel)
    }
}

fn size(cols: u32, rows: u32) -> Size {
    let clamp = |number: u32| u16::try_from(number.clamp(1, 10_000)).unwrap_or(u16::MAX);
    Size { rows: clamp(rows), cols: clamp(cols) }
}

/// Hears what is wanted, runs it, and carries its streams. The sandbox is held only while the command is started.
async fn attend(mut channel: Channel<Msg>, sandbox: Weak<Sandbox>, session: &str, peer: SocketAddr) {
    let (mut tty, mut env) = (None, Vec::new());
    let command = loop {
        match channel.wait().await {
            Some(ChannelMsg::RequestPty { term, col_width, row_height, .. }) => {
                tty = Some(size(col_width, row_height));
                let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
                if term.chars().all(plain) && (1..=64).contains(&term.len()) {
                    env.push(("TERM".to_owned(), term));
                }
            }
            Some(ChannelMsg::RequestShell { .. }) => break None,
            Some(ChannelMsg::Exec { command, .. }) => break Some(String::from_utf8_lossy(&command).into_owned()),
            Some(ChannelMsg::Close | ChannelMsg::RequestSubsystem { .. }) | None => return,
            Some(_) => {}
        }
    };
    let words: Vec<String> = command.iter().flat_map(|command| command.split_whitespace().map(str::to_owned)).collect();
    let what = if words.is_empty() { "a shell".to_owned() } else { crate::perimeter::redacted(&words) };
    tracing::info!(target: "audit", %peer, session, action = "ssh exec", what, "ssh");
    let script = command.unwrap_or_else(|| SHELL.to_owned());
    let request = ExecRequest {
        argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), script],
        env,
        stdin: true,
        tty,
        label: "ssh".to_owned(),
        ..ExecRequest::default()
    };
    let started = match sandbox.upgrade() {
        Some(sandbox) => sandbox.exec(request).await,
        None => Err(palisade_sandbox::Error::Ended),
    };
    let (reader, writer) = channel.split();
    let status = match started {
        Ok(mut exec) => {
            let input = exec.input();
            tokio::select! {
                () = inwards(reader, input) => return,
                status = outwards(&mut exec, &writer) => status,
            }
        }
        Err(_) => FAILED,
    };
    // A holder who has gone needs no answer.
    let _ = writer.eof().await;
    let _ = writer.exit_status(status).await;
    let _ = writer.close().await;
}

/// Carries the holder's words in; returns when the channel is closed.
async fn inwards(mut channel: ChannelReadHalf, input: Input) {
    while let Some(message) = channel.wait().await {
        let done = match message {
            ChannelMsg::Data { data } => input.write(&data).await,
            ChannelMsg::Eof => input.close().await,
            ChannelMsg::WindowChange { col_width, row_height, .. } => input.resize(size(col_width, row_height)).await,
            ChannelMsg::Signal { signal } => match number(&signal) {
                Some(signal) => input.signal(signal).await,
                None => Ok(()),
            },
            ChannelMsg::Close => return,
            _ => Ok(()),
        };
        if done.is_err() {
            // The end of the sandbox is told by who listens to the command.
            return std::future::pending().await;
        }
    }
}

fn number(signal: &Sig) -> Option<i32> {
    use rustix::process::Signal;
    let signal = match signal {
        Sig::ABRT => Signal::ABORT,
        Sig::ALRM => Signal::ALARM,
        Sig::FPE => Signal::FPE,
        Sig::HUP => Signal::HUP,
        Sig::ILL => Signal::ILL,
        Sig::INT => Signal::INT,
        Sig::KILL => Signal::KILL,
        Sig::PIPE => Signal::PIPE,
        Sig::QUIT => Signal::QUIT,
        Sig::SEGV => Signal::SEGV,
        Sig::TERM => Signal::TERM,
        Sig::USR1 => Signal::USR1,
        Sig::Custom(_) => return None,
    };
    Some(signal.as_raw())
}

/// Carries the command's words out; its exit status.
async fn outwards(exec: &mut palisade_sandbox::Exec, channel: &ChannelWriteHalf<Msg>) -> u32 {
    loop {
        let sent = match exec.next().await {
            Ok(Some(Output::Stdout(bytes))) => channel.data_bytes(bytes).await,
            Ok(Some(Output::Stderr(bytes))) => channel.extended_data_bytes(1, bytes).await,
            Ok(Some(Output::Lost(_))) => Ok(()),
            Ok(None) => {
                let status = exec.status().unwrap_or_default();
                let signal = status.signal.map(|signal| 128 + signal);
                return status.code.or(signal).and_then(|code| u32::try_from(code).ok()).unwrap_or(FAILED);
            }
            Err(why) => {
                let _ = channel.extended_data_bytes(1, format!("{why}\r\n").into_bytes()).await;
                return FAILED;
            }
        };
        if sent.is_err() {
            return FAILED;
        }
    }
}
