//! The answer to a push that was refused, as git shows it.

use super::rules::printable;
use super::{Commands, Refused};

/// The content type of [`refusal`].
pub const REFUSAL_CONTENT_TYPE: &str = "application/x-git-receive-pack-result";

/// The most bytes of a line (gitprotocol-common(5)), less its length and the number of its band.
const LINE: usize = 65_520 - 5;
const SMALL_LINE: usize = 1000 - 5;

/// The body of a 200 answer that refuses all commands of a push: a report with `ng` for each, in a side band when the client
/// can read one, together with the explanation, which git shows behind `remote:`.
///
/// The client sends its pack before it reads: the body of the request is to be read to its end, or the connection closed.
pub fn refusal(commands: &Commands, refused: &Refused) -> Vec<u8> {
    let mut report = Vec::new();
    if commands.has("report-status") || commands.has("report-status-v2") {
        line(&mut report, b"unpack ok\n");
        for update in &commands.updates {
            let why = refused.refs.iter().find(|one| one.name == update.name);
            // Atomic: those that were allowed are not done either.
            let why = why.map_or("not pushed since the push was refused as a whole", |one| one.why);
            line(&mut report, format!("ng {} {why}\n", update.name).as_bytes());
        }
        report.extend_from_slice(b"0000");
    }
    let most = match (commands.has("side-band-64k"), commands.has("side-band")) {
        (true, _) => LINE,
        (false, true) => SMALL_LINE,
        (false, false) => return report,
    };
    let mut body = Vec::new();
    band(&mut body, 2, format!("{}\n", printable_line(&refused.message)).as_bytes(), most);
    band(&mut body, 1, &report, most);
    body.extend_from_slice(b"0000");
    body
}

/// Messages are longer than what is shown of a name.
fn printable_line(text: &str) -> String {
    text.split(' ').map(printable).collect::<Vec<_>>().join(" ")
}

fn band(body: &mut Vec<u8>, number: u8, bytes: &[u8], most: usize) {
    for chunk in bytes.chunks(most) {
        let mut part = vec![number];
        part.extend_from_slice(chunk);
        line(body, &part);
    }
}

fn line(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(format!("{:04x}", bytes.len() + 4).as_bytes());
    to.extend_from_slice(bytes);
}
