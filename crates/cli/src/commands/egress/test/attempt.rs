//! What an attempt is: what is done inside, what must not come of it, and what must have refused it.

/// One attempt. Texts are patterns: `{token}` and the other names of [`super::scene`]'s facts are put in when it is made.
#[derive(Debug)]
pub(super) struct Attempt {
    /// `group.attempt`.
    pub(super) name: String,
    /// What it tries, in one line.
    pub(super) tries: &'static str,
    /// What is done inside, in this order.
    pub(super) acts: Vec<Act>,
    /// What must not come of it.
    pub(super) harm: Harm,
    /// What shows that it was refused, or for a control that it was not.
    pub(super) shown: Shown,
    /// What refuses it.
    pub(super) layer: Layer,
    /// What is different about its session.
    pub(super) session: Session,
}

/// Something that a program of the sandbox does.
#[derive(Debug, Clone)]
pub(super) enum Act {
    /// Opens a connection, says something, and reads what comes.
    Talk(Talk),
    /// Sends requests over one HTTP/2 connection.
    Two(Two),
    /// Asks for a name.
    Query(Query),
    /// Sends a datagram to an address and port.
    Datagram(String),
    /// Makes a socket of an unusual kind, and uses it.
    Socket(Kind),
    /// Looks at what else is in the sandbox.
    Look(Look),
}

/// A conversation.
#[derive(Debug, Clone)]
pub(super) struct Talk {
    /// `proxy`, or a host and port, which are looked up and connected to as any program does.
    pub(super) to: String,
    /// What the proxy is asked for before anything else: the head of a CONNECT request.
    pub(super) connect: Option<String>,
    /// TLS: the name that it asks for, if any.
    pub(super) tls: Option<Option<String>>,
    /// What is said, each piece in a write of its own.
    pub(super) says: Vec<String>,
}

/// A request over HTTP/2: method, URL and headers.
pub(super) type Asked = (&'static str, String, Vec<(&'static str, String)>);

/// Requests over HTTP/2.
#[derive(Debug, Clone)]
pub(super) struct Two {
    /// Where the connection goes; its TLS asks for the same name. Without TLS when `plain`.
    pub(super) to: String,
    pub(super) plain: bool,
    /// Method, URL and headers of each.
    pub(super) requests: Vec<Asked>,
}

/// A DNS query.
#[derive(Debug, Clone)]
pub(super) struct Query {
    /// Whom it is sent to.
    pub(super) to: String,
    pub(super) tcp: bool,
    pub(super) name: String,
    /// The type that is asked for.
    pub(super) kind: u16,
    /// Bytes that follow the question.
    pub(super) padding: usize,
}

/// An unusual socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    RawIcmp,
    Ping,
    RawTcp,
    Packet,
    Vsock,
    Route,
    Filter,
    Sctp,
    UdpLite,
    Abstract,
    Path,
    TakeProxy,
}

/// A place inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Descriptors,
    Processes,
    Memory,
    Environment,
    OwnEnvironment,
    OthersDescriptors,
    Steal,
    Root,
    Given,
}

/// What must not come of an attempt. Whatever the attempt: the real value of a credential must neither be seen inside nor come to
/// anybody but its own host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Harm {
    /// The token arrives anywhere outside, in whatever form.
    Token,
    /// The token arrives in the head of what the upstream takes for a request.
    Head,
    /// The real value of a credential arrives anywhere.
    Value,
    /// None but what holds for all.
    Common,
}

/// What shows how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shown {
    /// The trail has a refusal of this session with one of these reasons, or a failure with one of these codes.
    Reason(&'static [&'static str]),
    /// The system refuses with one of these errors.
    Errno(&'static [rustix::io::Errno]),
    /// The same, and the kernel has told the worker of the packet.
    Told(&'static [rustix::io::Errno]),
    /// Nothing is answered, and the connection ends, with a reset or without.
    Silence,
    /// The sandbox is told this.
    Said(&'static str),
    /// The trail counts a value that was taken out of the answer, and the sandbox was answered.
    Redacted,
    /// A control: the token arrives at this upstream.
    Arrived(&'static str),
    /// A control: the real value arrives at its host.
    Injected,
    /// A control: the sandbox is told this, which an attempt is refused.
    Heard(&'static str),
}

impl Shown {
    /// Whether the thing is meant to succeed.
    pub(super) fn is_control(&self) -> bool {
        matches!(self, Shown::Arrived(_) | Shown::Injected | Shown::Heard(_))
    }

    /// For lists.
    pub(super) fn evidence(&self) -> String {
        let errors = |errors: &[rustix::io::Errno]| {
            let names: Vec<&str> = errors.iter().map(|errno| name(*errno)).collect();
            names.join(", ")
        };
        match self {
            Shown::Reason(codes) => codes.join(", "),
            Shown::Errno(list) => errors(list),
            Shown::Told(list) => format!("{}, told", errors(list)),
            Shown::Silence => "silence".to_owned(),
            Shown::Said(text) => (*text).to_owned(),
            Shown::Redacted => "redacted".to_owned(),
            Shown::Arrived(upstream) => format!("arrives at {upstream}"),
            Shown::Injected => "the real value arrives at its host".to_owned(),
            Shown::Heard(text) => format!("hears {text}"),
        }
    }
}

/// The name of an error, as manuals write it.
pub(super) fn name(errno: rustix::io::Errno) -> &'static str {
    use rustix::io::Errno;
    match errno {
        Errno::PERM => "EPERM",
        Errno::ACCESS => "EACCES",
        Errno::CONNREFUSED => "ECONNREFUSED",
        Errno::NETUNREACH => "ENETUNREACH",
        Errno::HOSTUNREACH => "EHOSTUNREACH",
        Errno::ADDRNOTAVAIL => "EADDRNOTAVAIL",
        Errno::ADDRINUSE => "EADDRINUSE",
        Errno::AFNOSUPPORT => "EAFNOSUPPORT",
        Errno::PROTONOSUPPORT => "EPROTONOSUPPORT",
        Errno::NOENT => "ENOENT",
        Errno::INVAL => "EINVAL",
        Errno::NOSYS => "ENOSYS",
        Errno::SRCH => "ESRCH",
        Errno::CONNRESET => "ECONNRESET",
        Errno::SOCKTNOSUPPORT => "ESOCKTNOSUPPORT",
        _ => "another error",
    }
}

/// What refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    /// The sandbox's network namespace has a loopback device of its own, and nothing else.
    Namespace,
    /// The packet filter in that namespace.
    Filter,
    /// The filter of system calls, and the lack of capabilities.
    Calls,
    /// The session's own resolver.
    Resolver,
    /// Names have one normal form, or are none.
    Names,
    /// One authority for each connection.
    Authority,
    /// The policy.
    Policy,
    /// Requests have one reading.
    Requests,
    /// The address that is dialled.
    Dial,
    /// The upstream's certificate.
    Certificate,
    /// The broker, on the way out.
    Broker,
    /// The broker, on the way in.
    Answers,
    /// The audit trail.
    Trail,
    /// The session's end.
    End,
    /// Nothing: it is a control.
    None,
}

impl Layer {
    pub(super) fn title(self) -> &'static str {
        match self {
            Layer::Namespace => "network namespace",
            Layer::Filter => "packet filter",
            Layer::Calls => "system calls",
            Layer::Resolver => "resolver",
            Layer::Names => "names",
            Layer::Authority => "one authority",
            Layer::Policy => "policy",
            Layer::Requests => "one reading",
            Layer::Dial => "address dialled",
            Layer::Certificate => "upstream certificate",
            Layer::Broker => "broker, requests",
            Layer::Answers => "broker, answers",
            Layer::Trail => "audit trail",
            Layer::End => "end of session",
            Layer::None => "none: control",
        }
    }
}

/// What is different about a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Session {
    #[default]
    Usual,
    /// The trail keeps nothing of it.
    Untraced,
    /// It has ended when the attempt is made.
    Ended,
    /// Its credentials are revoked.
    Revoked,
}

impl Attempt {
    pub(super) fn new(name: impl Into<String>, tries: &'static str) -> Attempt {
        Attempt {
            name: name.into(),
            tries,
            acts: Vec::new(),
            harm: Harm::Token,
            shown: Shown::Reason(&[]),
            layer: Layer::Policy,
            session: Session::Usual,
        }
    }

    pub(super) fn act(mut self, act: impl Into<Act>) -> Attempt {
        self.acts.push(act.into());
        self
    }

    pub(super) fn harm(self, harm: Harm) -> Attempt {
        Attempt { harm, ..self }
    }

    pub(super) fn in_session(self, session: Session) -> Attempt {
        Attempt { session, ..self }
    }

    pub(super) fn shown(self, layer: Layer, shown: Shown) -> Attempt {
        Attempt { layer, shown, ..self }
    }

    pub(super) fn refused(self, layer: Layer, reasons: &'static [&'static str]) -> Attempt {
        self.shown(layer, Shown::Reason(reasons))
    }

    /// The first part of its name.
    pub(super) fn group(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }
}

impl From<Talk> for Act {
    fn from(talk: Talk) -> Act {
        Act::Talk(talk)
    }
}

impl From<Two> for Act {
    fn from(two: Two) -> Act {
        Act::Two(two)
    }
}

impl From<Query> for Act {
    fn from(query: Query) -> Act {
        Act::Query(query)
    }
}

impl From<Kind> for Act {
    fn from(kind: Kind) -> Act {
        Act::Socket(kind)
    }
}

impl From<Look> for Act {
    fn from(look: Look) -> Act {
        Act::Look(look)
    }
}

fn owned(says: &[&str]) -> Vec<String> {
    says.iter().map(|&piece| piece.to_owned()).collect()
}

impl Talk {
    /// With an address or name directly.
    pub(super) fn with(to: &str, says: &[&str]) -> Talk {
        Talk { to: to.to_owned(), connect: None, tls: None, says: owned(says) }
    }

    /// With the HTTP proxy.
    pub(super) fn proxy(says: &[&str]) -> Talk {
        Talk::with("proxy", says)
    }

    /// Through a tunnel of the HTTP proxy to `target`.
    pub(super) fn tunnel(target: &str, says: &[&str]) -> Talk {
        Talk::tunnel_by(&format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"), says)
    }

    /// Through a tunnel that is asked for in these words.
    pub(super) fn tunnel_by(head: &str, says: &[&str]) -> Talk {
        Talk { connect: Some(head.to_owned()), ..Talk::proxy(says) }
    }

    /// Speaks TLS that asks for `name`.
    pub(super) fn tls(self, name: &str) -> Talk {
        Talk { tls: Some(Some(name.to_owned())), ..self }
    }

    /// Speaks TLS that asks for no name.
    pub(super) fn nameless(self) -> Talk {
        Talk { tls: Some(None), ..self }
    }

    /// In an intercepted connection to a host that has a certificate.
    pub(super) fn inside(host: &str, says: &[&str]) -> Talk {
        Talk::tunnel(&format!("{host}:{{https}}"), says).tls(host)
    }

    /// In an intercepted connection to the host that the policy allows.
    pub(super) fn allowed(says: &[&str]) -> Talk {
        Talk::inside("allowed.test", says)
    }
}
