//! A TUN device: what a network namespace sends arrives here as raw packets.

use nix::libc;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// The device's name within its namespace.
pub const DEVICE: &str = "quire0";

nix::ioctl_write_ptr_bad!(
    /// Makes a descriptor of /dev/net/tun the device that the request names.
    tunsetiff,
    0x4004_54ca,
    libc::ifreq
);

/// Makes the device in the network namespace of the calling thread. Reads don't block.
pub fn open() -> io::Result<File> {
    let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(DEVICE.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    let request =
        libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    // SAFETY: TUNSETIFF reads a whole `ifreq`, which lives until the call returns; the descriptor is open.
    unsafe { tunsetiff(file.as_raw_fd(), &request) }?;
    Ok(file)
}
