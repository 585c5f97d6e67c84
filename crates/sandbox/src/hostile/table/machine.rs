//! The machine: its settings, what it tells, its devices; rights over it.

use crate::hostile::Attempt;

pub(super) const MACHINE: &[Attempt] = &[
    Attempt::new("machine.reboot", "restart the machine"),
    Attempt::new("machine.swap", "swap to a file of one's own"),
    Attempt::new("machine.accounting", "have the kernel write an account of all processes"),
    Attempt::new("machine.quota", "change quotas"),
    Attempt::new("machine.kernel-log", "read the kernel's log"),
    Attempt::new("machine.time-of-day", "set the clock"),
    Attempt::new("machine.clock", "set the clock, by its number"),
    Attempt::new("machine.clock-adjust", "adjust the clock"),
    Attempt::new("machine.host-name", "set the host's name"),
    Attempt::new("machine.domain-name", "set the domain's name"),
    Attempt::new("machine.hang-up", "hang up the terminal"),
    #[cfg(target_arch = "x86_64")]
    Attempt::new("machine.io-privilege", "talk to devices through I/O ports"),
    #[cfg(target_arch = "x86_64")]
    Attempt::new("machine.io-ports", "the same, port by port"),
    #[cfg(target_arch = "x86_64")]
    Attempt::new("machine.descriptor-table", "make segments of one's own").after("CVE-2015-3290"),
    Attempt::new("machine.personality", "turn address randomisation off"),
    Attempt::new("machine.priority", "a priority above others'"),
    Attempt::new("machine.real-time", "the real-time class"),
    Attempt::new("machine.deadline", "the deadline class"),
    Attempt::new("machine.io-real-time", "the real-time class of disks"),
    Attempt::new("machine.memory-policy", "say on which memory to live"),
    Attempt::new("machine.core-pattern", "have dumps handled by a program of one's own"),
    Attempt::new("machine.modprobe", "have modules loaded by a program of one's own"),
    Attempt::new("machine.uevent-helper", "have device events handled by a program of one's own"),
    Attempt::new("machine.sysrq", "press the system request key"),
    Attempt::new("machine.overcommit", "change how memory is promised"),
    Attempt::new("machine.drop-caches", "drop the machine's caches"),
    Attempt::new("machine.huge-pages", "take huge pages"),
    Attempt::new("machine.address-randomisation", "change the machine's address randomisation"),
    Attempt::new("machine.file-handles", "change how many files may be open"),
    Attempt::new("machine.forwarding", "forward packets"),
    Attempt::new("machine.irq-affinity", "move interrupts"),
    Attempt::new("machine.scheduler-debug", "look into debugfs and tracefs"),
    Attempt::new("machine.security-fs", "look into securityfs"),
    Attempt::new("machine.bpf-fs", "look into the BPF file system"),
    Attempt::new("machine.efi", "look at the firmware's variables"),
    Attempt::new("machine.cgroup-files", "move into another control group, or make one"),
    Attempt::new("machine.kernel-memory", "read the kernel's memory"),
    Attempt::new("machine.kernel-addresses", "read where the kernel's functions are"),
    Attempt::new("machine.io-memory-map", "read where memory and devices are"),
    Attempt::new("machine.modules-list", "read which modules are loaded"),
    Attempt::new("machine.keys-list", "read which keys there are"),
    Attempt::new("machine.timers-list", "read who waits for what"),
    Attempt::new("machine.kernel-log-file", "read the kernel's log as a file"),
    Attempt::new("machine.slabs", "read what the kernel has allocated"),
    Attempt::new("machine.page-flags", "read what pages are used for"),
    Attempt::new("machine.virtual-memory-map", "read the kernel's memory map"),
    Attempt::new("machine.interrupts", "count interrupts, which tell of keystrokes and packets"),
    Attempt::new("machine.physical-addresses", "find out physical addresses").after("Rowhammer"),
];

pub(super) const DEVICES: &[Attempt] = &[
    Attempt::new("devices.make-disk", "make a node of the first disk, and open it").after("R122"),
    Attempt::new("devices.make-virtual-disk", "make a node of a virtual disk, and open it"),
    Attempt::new("devices.make-memory", "make a node of the machine's memory, and open it"),
    Attempt::new("devices.make-kernel-log", "make a node of the kernel's log, and open it"),
    Attempt::new("devices.make-null", "make any node"),
    Attempt::new("devices.memory", "open the machine's memory or ports"),
    Attempt::new("devices.kernel-log", "open the kernel's log"),
    Attempt::new("devices.fuse", "open the device of file systems served by programs"),
    Attempt::new("devices.tunnel", "open the device of network tunnels"),
    Attempt::new("devices.virtual-machines", "open the devices of virtual machines"),
    Attempt::new("devices.loop", "open loop devices and the device mapper"),
    Attempt::new("devices.disks", "open a disk"),
    Attempt::new("devices.terminals", "open the machine's terminals, serial lines and keyboards"),
    Attempt::new("devices.others", "find any device but the harmless ones"),
    Attempt::new("devices.execute-mapping", "find the machine's buses and graphics"),
];

pub(super) const CAPABILITIES: &[Attempt] = &[
    Attempt::new("capabilities.have", "have a capability in any of the five sets").after("R122"),
    Attempt::new("capabilities.new-privileges", "run without no_new_privs").after("R122"),
    Attempt::new("capabilities.filters", "run without system-call filters"),
    Attempt::new("capabilities.set", "take every capability"),
    Attempt::new("capabilities.ambient", "raise an ambient capability"),
    Attempt::new("capabilities.bounding-set", "change what capabilities may be had"),
    Attempt::new("capabilities.secure-bits", "unlock the secure bits"),
    Attempt::new("capabilities.seccomp-off", "turn the filters off"),
    Attempt::new("capabilities.new-privileges-off", "turn no_new_privs off"),
    Attempt::new("capabilities.root", "become root").after("R123"),
    Attempt::new("capabilities.root-all", "become root in every sense"),
    Attempt::new("capabilities.root-group", "become root's group"),
    Attempt::new("capabilities.groups", "join root's group besides"),
    Attempt::new("capabilities.file-user", "become root for files only"),
    Attempt::new("capabilities.set-id-mode", "make a set-id file with fchmodat"),
    Attempt::new("capabilities.set-id-mode-2", "the same with fchmodat2"),
    Attempt::new("capabilities.set-id-descriptor", "the same by a descriptor"),
    #[cfg(target_arch = "x86_64")]
    Attempt::new("capabilities.set-id-old-mode", "the same with chmod"),
    #[cfg(target_arch = "x86_64")]
    Attempt::new("capabilities.set-id-old-born", "create one with open"),
    #[cfg(target_arch = "x86_64")]
    Attempt::new("capabilities.set-id-created", "create one with creat"),
    Attempt::new("capabilities.set-id-temporary", "create one without a name, to be given one later"),
    Attempt::new("capabilities.set-id-born", "create a file that is set-id from the start"),
    Attempt::new("capabilities.set-id-node", "the same with mknod"),
    Attempt::new("capabilities.file-capability", "give a file a capability"),
    Attempt::new("capabilities.set-id-programs", "gain something from the set-id programs that are here"),
];

pub(super) const CORES: &[Attempt] = &[
    Attempt::new("cores.limit", "raise the limit of core dumps"),
    Attempt::new("cores.crash", "crash, and leave a dump or have the host's handler take it").after("CVE-2025-4598"),
];

pub(super) const TERMINAL: &[Attempt] = &[
    Attempt::new("terminal.type-into", "type into a terminal").after("CVE-2017-5226"),
    Attempt::new("terminal.type-into-input", "type into one's input"),
    Attempt::new("terminal.paste", "paste into the console").after("CVE-2017-5226"),
    Attempt::new("terminal.high-bits", "type into a terminal past a filter that looks at too many bits")
        .after("CVE-2019-10063"),
    Attempt::new("terminal.discipline", "have the kernel load a discipline of terminals").after("CVE-2017-2636"),
    Attempt::new("terminal.controlling", "open a terminal of the worker"),
    Attempt::new("terminal.of-others", "open somebody else's terminal"),
];
