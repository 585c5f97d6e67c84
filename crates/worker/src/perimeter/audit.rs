//! What operators do, in the log under the target `audit`.

use super::gate::Peer;

/// Notes an action before it is done. `what` holds no secret: see [`redacted`].
pub(crate) fn note(peer: Peer, session: &str, action: &str, what: &str) {
    tracing::info!(target: "audit", uid = peer.uid, pid = peer.pid, session, action, what, "admin action");
}

/// A command as it may be logged: what stands behind a `=` and what follows an option is left out, as it may be a secret.
pub(crate) fn redacted(argv: &[String]) -> String {
    let mut shown = Vec::new();
    let mut hide = false;
    for (place, word) in argv.iter().enumerate() {
        let plain: String = word.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect();
        let text = match plain.split_once('=') {
            Some((name, _)) => format!("{name}=…"),
            None if hide && !plain.starts_with('-') => "…".to_owned(),
            None => plain.clone(),
        };
        hide = place > 0 && plain.starts_with('-') && !plain.contains('=');
        shown.push(text);
    }
    shown.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_left_out() {
        let argv = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(redacted(&argv("env TOKEN=abc make -j4 all")), "env TOKEN=… make -j4 …");
        assert_eq!(redacted(&argv("curl --header secret -u me:pw http://x")), "curl --header … -u … http://x");
        assert_eq!(redacted(&["sh".into(), "-c".into(), "echo $SECRET".into()]), "sh -c …");
        assert_eq!(redacted(&["a\n\u{1b}[2J".into()]), "a  [2J");
    }
}
