//! Commands that attack the shell that they run in, and what it says about them.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::rig::Rig;

#[tokio::test]
async fn output_does_not_pass_for_a_status() {
    let rig = Rig::new().await;
    let forge =
        "for n in $(seq 3 20) 255; do printf '%s 0\\n' 00000000000000000000000000000000 >&$n; done 2>/dev/null; false";
    assert!(rig.call("bash", json!({"command": forge})).await.1);
    // Through the shell's own descriptors, as far as a child can open them.
    let forge = "for f in /proc/$PPID/fd/* /proc/$$/fd/*; do [ -p $f ] && (echo 'x 0' > $f) & done 2>/dev/null; wait; sh -c 'exit 7'";
    let (text, is_error) = rig.call("bash", json!({"command": forge})).await;
    assert!(is_error, "{text}");
    for attack in [
        "exec 9>/tmp/nine; exec 8>&9; false",
        "exec 9>&-; false",
        "exec 9>&1; echo 'x 0' >&9; false",
        "trap 'echo trapped' DEBUG; trap - DEBUG; false",
        "set -x; false",
        "set +x; printf() { echo fake; }; false",
        "eval 'exit() { :; }'; false",
        "IFS=0123456789abcdef; false",
        "PS4='$(exit 0)'; shopt -s expand_aliases; alias printf='true '; false",
    ] {
        let (text, is_error) = rig.call("bash", json!({"command": attack})).await;
        assert!(is_error, "{attack}: {text}");
    }
    assert_eq!(rig.bash("echo alive").await, "alive");
}

#[tokio::test]
async fn a_shell_that_is_turned_against_its_protocol_costs_one_call() {
    let rig = Rig::new().await;
    for attack in [
        "builtin() { :; }",
        "eval() { :; }",
        "exec 0</dev/null",
        "set -n",
        "kill -STOP $$",
        "cat /proc/$$/fd/0 >/dev/null",
        "exec sleep 100",
        "readonly POSIXLY_CORRECT; trap '' TERM; kill -9 $$",
    ] {
        let input = json!({"command": attack});
        rig.within("bash", input, Duration::from_millis(400)).await;
        rig.within("bash", json!({"command": "true"}), Duration::from_millis(400)).await;
        assert_eq!(
            rig.call("bash", json!({"command": "echo fresh", "restart": true})).await,
            ("fresh".to_owned(), false),
            "{attack}"
        );
    }
}

#[tokio::test]
async fn any_text_is_a_command() {
    let rig = Rig::new().await;
    for (command, said) in [
        ("echo 'one\ntwo'", "one\ntwo"),
        ("cat <<END\n$((1 + 1)) 'it''s'\nEND\necho after", "2 'it''s'\nafter"),
        ("cat <<'END'\n$x `y`\nEND", "$x `y`"),
        ("if true\nthen\n  echo yes # a comment\nfi # no end of line", "yes"),
        ("f() { echo \"$1\"; }; f \"a'b\\\"c\"", "a'b\"c"),
        ("echo a \\\n b", "a b"),
        ("cat; read x; echo \"[$x]\"", "[]"),
        ("echo '\u{1f600} ü' | wc -m", "4"),
        ("! false && echo not", "not"),
        ("echo $'\\x41\\n\\x42'", "A\nB"),
    ] {
        assert_eq!(rig.call("bash", json!({"command": command})).await, (said.to_owned(), false), "{command}");
    }
    for command in ["echo 'open", "echo \"open", "if true", "cat <(", "}", "echo $((", "((", "case x in"] {
        let (text, is_error) = rig.call("bash", json!({"command": command})).await;
        assert!(is_error && !text.contains("timed out"), "{command}: {text}");
    }
    let (text, is_error) = rig.call("bash", json!({"command": "echo a\0b"})).await;
    assert!(is_error && text.contains("NUL"), "{text}");
    // Two megabytes, with every kind of quote.
    let long = format!("x='{}'; echo ${{#x}}", "0123456789\"\\`$é ".repeat(130_000));
    assert_eq!(rig.bash(&long).await, (130_000 * 16).to_string());
}

#[tokio::test]
async fn a_log_shows_what_was_printed() {
    let rig = Rig::new().await;
    let said = rig.bash(r"printf 'a\033[2J\033[31mb\033]0;title\007c\r\nd\033]52;c;ZXZpbA==\007\033[?1049he\b\b\x9b2J\302\2332Jf\033]hidden?'").await;
    assert_eq!(said, "abc\nde\u{fffd}2J2Jfhidden?");
    assert_eq!(rig.bash("printf 'x\\0y'").await, "xy");
    let rest = rig.bash("echo begin; printf '\\033P'; echo end").await;
    assert_eq!(rest, "begin\nend");
}

#[tokio::test]
async fn the_session_lasts_until_it_ends() {
    let rig = Rig::new().await;
    rig.bash("cd /tmp; export A=1; b=2; f() { echo $A$b; }; sleep 1000 & job=$!").await;
    assert_eq!(rig.bash("pwd; f; kill -0 $job && echo runs").await, "/tmp\n12\nruns");
    let (text, is_error) = rig.call("bash", json!({"command": "echo last; exit 3"})).await;
    assert!(is_error && text == "last\nbash: bash session terminated", "{text}");
    assert_eq!(rig.bash("echo $A; pwd").await, "\n/workspace");
    let (text, is_error) = rig.call("bash", json!({"command": "exit 0"})).await;
    assert!(is_error && text == "bash: bash session terminated", "{text}");
    let (text, is_error) = rig.call("bash", json!({"command": "set -e; false; echo not reached"})).await;
    assert!(is_error && text.contains("terminated"), "{text}");
    rig.bash("A=3").await;
    assert_eq!(rig.call("bash", json!({"restart": true})).await, ("bash: session restarted".to_owned(), false));
    assert_eq!(rig.bash("echo [$A]").await, "[]");
}

#[tokio::test]
async fn a_job_in_the_background_holds_nobody_up() {
    let rig = Rig::new().await;
    let began = Instant::now();
    rig.bash("sleep 1000 & setsid sleep 1000 & (setsid nohup sleep 1000 &) ; true").await;
    rig.run(&["/bin/sh", "-c", "setsid sleep 1000 & echo started"]).await;
    let (text, is_error) = rig.call("bash", json!({"command": "setsid sleep 1000 & exit"})).await;
    assert!(is_error && text.contains("terminated"));
    assert!(began.elapsed() < Duration::from_secs(20), "nothing waited for the sleepers");
    // One that prints more than a pipe holds goes on between the calls.
    rig.bash("(for i in $(seq 200000); do echo line $i; done; touch /tmp/through) & disown").await;
    for _ in 0..500 {
        if rig.run(&["/bin/ls", "/tmp/through"]).await.0.code == Some(0) {
            let said = rig.bash("true").await;
            assert!(said.starts_with("[output truncated: ") && said.ends_with("line 200000"), "{}", said.len());
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the job did not go on");
}

#[tokio::test]
async fn time_runs_out_for_one_call_only() {
    let rig = Rig::new().await;
    rig.bash("A=1").await;
    let slow = json!({"command": "echo so far; sleep 1000 & trap '' TERM INT; sleep 1000", "timeout_ms": 5000});
    let (text, is_error) = rig.call("bash", slow).await;
    assert!(is_error);
    assert_eq!(text, "so far\nbash: bash command timed out after 5000ms");
    assert_eq!(rig.bash("echo [$A]").await, "[]");
    rig.gone("sleep").await;
    let (text, is_error) = rig.call("bash", json!({"command": "true", "timeout_ms": 0})).await;
    assert!(is_error && text.contains("timeout_ms"), "{text}");
    // Output without end is bounded here and there, and its end is what is kept.
    let flood = json!({"command": "yes 'a line of this flood' & sleep 0.2; echo; yes", "timeout_ms": 4000});
    let (text, _) = rig.call("bash", flood).await;
    assert!(text.starts_with("[output truncated: ") && text.len() < 110 << 10, "{}", text.len());
    let much = rig.bash("head -c 100000000 /dev/zero | tr '\\0' x; echo; echo the end").await;
    assert!(much.ends_with("x\nthe end") && much.len() <= (100 << 10) + 64, "{}", much.len());
}
