//! Frames that were changed on the way.

use std::io::Cursor;

use palisade_cell::{
    Bind, Claim, End, MAX_FRAME, Nursery, Place, Process, Ready, Reply, Request, Root, Setup, Size, Source, VERSION,
    Wanted, check_length, decode, encode, read_frame,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::chance::Chance;

fn frames() -> Vec<Vec<u8>> {
    let bind = Bind {
        source: Source::Path("/s".to_owned()),
        target: "/t".to_owned(),
        writable: true,
        directory: true,
        optional: false,
        over: false,
        devices: false,
    };
    let root = Root { layers: vec![Source::Descriptor(1)], binds: vec![bind], ..Root::default() };
    let setup = Setup {
        version: VERSION,
        place: Place::Own,
        root: Some(root.clone()),
        tmp_bytes: 1,
        shm_bytes: 2,
        rlimits: vec![(7, 8)],
        landlock: true,
        leave_early: false,
        own_users: false,
    };
    let claim = Claim {
        workdir: "/workspace".to_owned(),
        binds: Vec::new(),
        overlays: Vec::new(),
        hostname: "h".to_owned(),
        env: vec![("A".to_owned(), "b".to_owned())],
        roots: vec![("/workspace".to_owned(), true)],
    };
    let wanted = Wanted { argv: vec!["a".to_owned()], tty: Some(Size { rows: 1, cols: 2 }), ..Wanted::default() };
    let process = Process { end: Some(End::default()), ..Process::default() };
    let failed = Ready::Failed { step: "s".to_owned(), errno: 1, detail: "d".to_owned() };
    let tool = Request::Tool {
        id: 1,
        name: "grep".to_owned(),
        input: serde_json::json!({"pattern": ["x", null, 1]}),
        timeout_ms: 5,
    };
    vec![
        encode(&Nursery { version: VERSION, root: Some(root), egress: true }, b"").unwrap(),
        encode(&setup, b"filter").unwrap(),
        encode(&claim, b"filter").unwrap(),
        encode(&failed, b"").unwrap(),
        encode(&tool, b"").unwrap(),
        encode(&Request::Exec(Box::new(wanted)), b"").unwrap(),
        encode(&Request::Stdin { id: 1 }, b"input").unwrap(),
        encode(&Reply::Output { id: 1, stderr: true, offset: 2 }, b"output").unwrap(),
        encode(&Reply::Processes { id: 1, processes: vec![process] }, b"").unwrap(),
    ]
}

/// What is understood is written as what can be understood, with the same bytes behind it.
fn again<T: Serialize + DeserializeOwned>(frame: &[u8]) -> bool {
    let Ok((header, raw)) = decode::<T>(frame) else { return false };
    let written = encode(&header, raw).unwrap();
    let length = check_length(*written.first_chunk().unwrap()).unwrap();
    assert_eq!(length, written.len() - 4);
    assert_eq!(decode::<T>(&written[4..]).unwrap().1, raw);
    true
}

fn any(frame: &[u8]) -> bool {
    let understood = [
        again::<Nursery>(frame),
        again::<Setup>(frame),
        again::<Claim>(frame),
        again::<Ready>(frame),
        again::<Request>(frame),
        again::<Reply>(frame),
    ];
    understood.contains(&true)
}

#[test]
fn changed_frames_are_refused_or_understood() {
    let mut chance = Chance::new(1);
    let mut understood = 0;
    for frame in frames() {
        assert!(any(&frame[4..]));
        for _ in 0..1000 {
            let bytes = chance.change(&frame);
            understood += usize::from(any(bytes.get(4..).unwrap_or_default()));
            let mut stream = Cursor::new(&bytes);
            while let Ok(Some(frame)) = read_frame(&mut stream) {
                assert!((4..=MAX_FRAME).contains(&frame.len()));
                any(&frame);
            }
        }
    }
    // Else the changes would be too coarse to get past the first check.
    assert!(understood > 100, "{understood}");
}

#[test]
fn headers_that_mean_harm_are_refused() {
    let frame = |header: &str| {
        let mut frame = u32::try_from(header.len()).unwrap().to_le_bytes().to_vec();
        frame.extend_from_slice(header.as_bytes());
        frame
    };
    for header in ["", "{}", "null", "[[[[", r#"{"op":"exec"}"#, r#"{"op":"signal","id":-1,"signal":9}"#] {
        assert!(!any(&frame(header)), "{header}");
    }
    assert!(!any(&frame(&"[".repeat(1 << 20))));
    let deep = format!(r#"{{"op":"tool","id":1,"name":"x","timeout_ms":1,"input":{}}}"#, "[".repeat(1 << 20));
    assert!(!any(&frame(&deep)));
    assert!(decode::<Request>(&u32::MAX.to_le_bytes()).is_err());
    assert!(decode::<Request>(&[1, 0]).is_err());
    for length in [0, 3, u32::try_from(MAX_FRAME).unwrap() + 1, u32::MAX] {
        assert!(check_length(length.to_le_bytes()).is_err(), "{length}");
    }
    assert!(encode(&Request::Stdin { id: 1 }, &vec![0; MAX_FRAME]).is_err());
}
