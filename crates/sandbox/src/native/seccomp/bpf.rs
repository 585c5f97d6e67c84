//! Classic BPF programs that decide about system calls.

use std::collections::BTreeMap;

/// One instruction: code, jump if true, jump if false, constant.
pub(super) type Instruction = (u16, u8, u8, u32);

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_NOT_LESS: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e; // AUDIT_ARCH_X86_64
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7; // AUDIT_ARCH_AARCH64

/// The x32 interface of x86_64 numbers the same calls anew from here.
const X32: u32 = 0x4000_0000;

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    /// Not carried out; the caller is told this number. Zero says that it was.
    Answer(i32),
    /// The first of these whose conditions all hold; allowed when none does.
    Unless(Vec<(Vec<Condition>, i32)>),
}

/// Something about the lower half of an argument. The upper halves of the arguments that are looked at mean nothing to the
/// kernel: they are numbers of 32 bits or fewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    Equal(u32, u32),
    NotEqual(u32, u32),
    AnyBit(u32, u32),
    /// A pointer that is not null.
    Given(u32),
}

/// A program: `verdicts` by number, `default` for the other numbers up to `last`, "not there" for those beyond. Calls of
/// another architecture or through another interface end the process.
pub(super) fn program(verdicts: &BTreeMap<u32, Verdict>, default: &Verdict, last: u32) -> Vec<Instruction> {
    let mut ranges: Vec<(u32, &Verdict)> = Vec::new();
    let mut add = |from: u32, verdict| {
        if ranges.last().is_none_or(|(_, before)| *before != verdict) {
            ranges.push((from, verdict));
        }
    };
    let beyond = Verdict::Answer(libc::ENOSYS);
    let mut next = 0;
    for (&number, verdict) in verdicts {
        if number > next {
            add(next, default);
        }
        add(number, verdict);
        next = number + 1;
    }
    if next <= last {
        add(next, default);
    }
    add(last + 1, &beyond);
    let kill = (RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS);
    let mut code = vec![
        (LOAD, 0, 0, ARCH),
        (JUMP_EQUAL, 1, 0, NATIVE),
        kill,
        (LOAD, 0, 0, NUMBER),
        (JUMP_NOT_LESS, 0, 1, X32),
        kill,
    ];
    code.extend(search(&ranges));
    code
}

/// Finds a number's range by halves.
fn search(ranges: &[(u32, &Verdict)]) -> Vec<Instruction> {
    if let [(_, verdict)] = ranges {
        return decide(verdict);
    }
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let first = upper[0].0;
    let (lower, upper) = (search(lower), search(upper));
    // A conditional jump reaches 255 instructions, a plain one any number.
    let mut code = match u8::try_from(lower.len()) {
        Ok(length) => vec![(JUMP_NOT_LESS, length, 0, first)],
        Err(_) => vec![(JUMP_NOT_LESS, 0, 1, first), (JUMP, 0, 0, u32::try_from(lower.len()).unwrap_or(u32::MAX))],
    };
    code.extend(lower);
    code.extend(upper);
    code
}

fn decide(verdict: &Verdict) -> Vec<Instruction> {
    let answer = |errno: i32| (RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno.unsigned_abs());
    let allow = (RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
    match verdict {
        Verdict::Allow => vec![allow],
        Verdict::Answer(errno) => vec![answer(*errno)],
        Verdict::Unless(rules) => {
            let mut code = Vec::new();
            for (conditions, errno) in rules {
                let mut tests: Vec<Vec<Instruction>> = Vec::new();
                // What is jumped over when a condition does not hold: the tests behind it, and the answer.
                let mut behind = 1u8;
                for condition in conditions.iter().rev() {
                    let test = test(condition, behind);
                    behind += u8::try_from(test.len()).unwrap_or(0);
                    tests.push(test);
                }
                code.extend(tests.into_iter().rev().flatten());
                code.push(answer(*errno));
            }
            code.push(allow);
            code
        }
    }
}

/// Goes on when the condition holds; else jumps over `behind` instructions.
fn test(condition: &Condition, behind: u8) -> Vec<Instruction> {
    // Both architectures are little-endian: the lower half comes first.
    let low = |argument: u32| (LOAD, 0, 0, ARGUMENTS + 8 * argument);
    match *condition {
        Condition::Equal(argument, value) => vec![low(argument), (JUMP_EQUAL, 0, behind, value)],
        Condition::NotEqual(argument, value) => vec![low(argument), (JUMP_EQUAL, behind, 0, value)],
        Condition::AnyBit(argument, bits) => vec![low(argument), (JUMP_ANY_BIT, 0, behind, bits)],
        Condition::Given(argument) => vec![
            low(argument),
            (JUMP_GREATER, 2, 0, 0),
            (LOAD, 0, 0, ARGUMENTS + 8 * argument + 4),
            (JUMP_GREATER, 0, behind, 0),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a program says about a call, the way the kernel reads it.
    fn run(code: &[Instruction], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let (mut at, mut value) = (0usize, 0u32);
        loop {
            let (op, jt, jf, k) = code[at];
            at += 1;
            let jump = |holds: bool| usize::from(if holds { jt } else { jf });
            match op {
                LOAD if k == NUMBER => value = number,
                LOAD if k == ARCH => value = arch,
                LOAD => {
                    let argument = arguments[((k - ARGUMENTS) / 8) as usize];
                    value = if k % 8 == 0 { argument as u32 } else { (argument >> 32) as u32 };
                }
                JUMP => at += k as usize,
                JUMP_EQUAL => at += jump(value == k),
                JUMP_GREATER => at += jump(value > k),
                JUMP_NOT_LESS => at += jump(value >= k),
                JUMP_ANY_BIT => at += jump(value & k != 0),
                RETURN => return k,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn every_number_gets_its_verdict() {
        let rules = vec![
            (vec![Condition::AnyBit(0, 4), Condition::Equal(1, 7)], 1),
            (vec![Condition::Given(2), Condition::NotEqual(3, 9)], 0),
        ];
        let mut verdicts: BTreeMap<u32, Verdict> = (0..300).step_by(3).map(|number| (number, Verdict::Allow)).collect();
        verdicts.insert(10, Verdict::Unless(rules));
        verdicts.insert(11, Verdict::Answer(38));
        let code = program(&verdicts, &Verdict::Answer(1), 400);
        let errno = |number: u32| libc::SECCOMP_RET_ERRNO | number;
        for number in 0..500u32 {
            let expected = match number {
                10 => continue,
                11 => errno(38),
                _ if number > 400 => errno(38),
                _ if number % 3 == 0 && number < 300 => libc::SECCOMP_RET_ALLOW,
                _ => errno(1),
            };
            assert_eq!(run(&code, NATIVE, number, [0; 6]), expected, "{number}");
        }
        let ask = |arguments| run(&code, NATIVE, 10, arguments);
        assert_eq!(ask([4, 7, 0, 9, 0, 0]), errno(1));
        assert_eq!(ask([4, 8, 0, 9, 0, 0]), libc::SECCOMP_RET_ALLOW);
        assert_eq!(ask([0, 7, 1, 9, 0, 0]), libc::SECCOMP_RET_ALLOW);
        assert_eq!(ask([0, 7, 1 << 40, 8, 0, 0]), errno(0));
        assert_eq!(ask([0, 7, 1, 8, 0, 0]), errno(0));
        for (arch, number) in [(3, 0), (NATIVE, X32), (NATIVE, X32 | 3), (NATIVE, u32::MAX)] {
            assert_eq!(run(&code, arch, number, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
        }
    }
}
