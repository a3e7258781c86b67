//! `bpf(2)`: typed maps, batch operations, links and pins.
//!
//! aya loads programs and creates maps; what it lacks is here. A [`Map`] is one descriptor with its
//! types checked against the kernel once, so that every later access is one system call on `&self`
//! from any thread.

use std::{
    ffi::{CString, c_long},
    io,
    marker::PhantomData,
    mem,
    ops::Deref,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr::{self, NonNull},
    slice,
    sync::atomic::AtomicU64,
};

use aya_obj::generated::{
    BPF_ANY, BPF_EXIST, BPF_F_BEFORE, BPF_NOEXIST, XDP_FLAGS_DRV_MODE, bpf_attr, bpf_cmd, bpf_link_info,
    bpf_map_info,
};
pub use aya_obj::generated::{
    bpf_attach_type as AttachType, bpf_link_type as LinkType, bpf_map_type as MapType,
};

use super::{Pod, check, zeroed};

/// Calls the kernel.
///
/// # Safety
///
/// Addresses and lengths in `attr` must describe memory that the kernel may read or write for `command`.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<c_long> {
    // SAFETY: `attr` is a whole `bpf_attr` of the given size; the rest is the caller's promise.
    check(unsafe { libc::syscall(libc::SYS_bpf, command as c_long, &raw mut *attr, size_of::<bpf_attr>()) })
}

fn zeroed_attr() -> bpf_attr {
    // SAFETY: a union of plain integers, for which zero is valid; the kernel demands that unused
    // bytes be zero.
    unsafe { mem::zeroed() }
}

fn address<T: ?Sized>(pointer: *const T) -> u64 {
    pointer.cast::<()>() as usize as u64
}

fn fd_number(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd() as u32
}

fn owned_fd(number: c_long) -> OwnedFd {
    // SAFETY: only called with a descriptor that the kernel has just made for us.
    unsafe { OwnedFd::from_raw_fd(number as i32) }
}

fn path_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Shape of a map, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// A `BPF_MAP_TYPE_*` number.
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Elements at most.
    pub max_entries: u32,
    /// `BPF_F_*` flags of its creation.
    pub flags: u32,
}

/// Asks the kernel for the shape of a map.
///
/// # Errors
///
/// Those of `BPF_OBJ_GET_INFO_BY_FD`.
pub fn map_shape(map: BorrowedFd<'_>) -> io::Result<MapShape> {
    // SAFETY: plain integers, for which zero is valid.
    let mut info: bpf_map_info = unsafe { mem::zeroed() };
    let mut attr = zeroed_attr();
    attr.info.bpf_fd = fd_number(map);
    attr.info.info_len = size_of::<bpf_map_info>() as u32;
    attr.info.info = address(&raw mut info);
    // SAFETY: `info` is of the announced length and outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(MapShape {
        map_type: info.type_,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        flags: info.map_flags,
    })
}

/// Whether an update may create an element, replace one, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Create or replace.
    Any,
    /// Create only; `EEXIST` if it is there.
    New,
    /// Replace only; `ENOENT` if it is not.
    Existing,
}

/// What became of a batch of updates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Elements written.
    pub done: usize,
    /// Positions, in the batch, of elements that the kernel refused: no room left, or its bucket
    /// was locked.
    pub refused: Vec<usize>,
}

/// A map with keys `K` and values `V`, not per CPU.
#[derive(Debug)]
pub struct Map<K, V> {
    fd: OwnedFd,
    max_entries: u32,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Pod, V: Pod> Map<K, V> {
    /// A handle of its own on a map.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the map's keys or values have other sizes than `K` and `V`, or if the map
    /// is per CPU; errors of the system.
    pub fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        let shape = map_shape(map)?;
        let per_cpu = [
            MapType::BPF_MAP_TYPE_PERCPU_ARRAY,
            MapType::BPF_MAP_TYPE_PERCPU_HASH,
            MapType::BPF_MAP_TYPE_LRU_PERCPU_HASH,
        ];
        if shape.key_size as usize != size_of::<K>()
            || shape.value_size as usize != size_of::<V>()
            || per_cpu.iter().any(|t| *t as u32 == shape.map_type)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "the map holds {} and {} bytes an element, not {} and {}",
                    shape.key_size,
                    shape.value_size,
                    size_of::<K>(),
                    size_of::<V>()
                ),
            ));
        }
        Ok(Self { fd: map.try_clone_to_owned()?, max_entries: shape.max_entries, types: PhantomData })
    }

    /// Elements at most.
    pub fn max_entries(&self) -> u32 {
        self.max_entries
    }

    fn element(&self, key: &K, value: *const V, flags: u64) -> bpf_attr {
        let mut attr = zeroed_attr();
        attr.__bindgen_anon_2.map_fd = fd_number(&self.fd);
        attr.__bindgen_anon_2.key = address(&raw const *key);
        attr.__bindgen_anon_2.__bindgen_anon_1.value = address(value);
        attr.__bindgen_anon_2.flags = flags;
        attr
    }

    fn read(&self, command: bpf_cmd, key: &K) -> io::Result<Option<V>> {
        let mut value = zeroed();
        let mut attr = self.element(key, &raw mut value, 0);
        // SAFETY: key and value have the map's sizes (checked in `new`) and outlive the call.
        match unsafe { bpf(command, &mut attr) } {
            Ok(_) => Ok(Some(value)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The value of `key`, if there is one.
    ///
    /// # Errors
    ///
    /// Those of `BPF_MAP_LOOKUP_ELEM` but `ENOENT`.
    pub fn lookup(&self, key: &K) -> io::Result<Option<V>> {
        self.read(bpf_cmd::BPF_MAP_LOOKUP_ELEM, key)
    }

    /// Takes an element out and returns its last value: no packet can change it in between.
    ///
    /// # Errors
    ///
    /// Those of `BPF_MAP_LOOKUP_AND_DELETE_ELEM` (hash maps: Linux 5.14) but `ENOENT`.
    pub fn take(&self, key: &K) -> io::Result<Option<V>> {
        self.read(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, key)
    }

    /// Writes one element.
    ///
    /// # Errors
    ///
    /// Those of `BPF_MAP_UPDATE_ELEM`: `E2BIG` if a hash map is full, or as [`Write`] says.
    pub fn update(&self, key: &K, value: &V, write: Write) -> io::Result<()> {
        let flags = match write {
            Write::Any => BPF_ANY,
            Write::New => BPF_NOEXIST,
            Write::Existing => BPF_EXIST,
        };
        let mut attr = self.element(key, &raw const *value, flags.into());
        // SAFETY: key and value have the map's sizes (checked in `new`) and outlive the call.
        unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop) }
    }

    /// Deletes an element and tells whether there was one.
    ///
    /// # Errors
    ///
    /// Those of `BPF_MAP_DELETE_ELEM` but `ENOENT`.
    pub fn delete(&self, key: &K) -> io::Result<bool> {
        let mut attr = self.element(key, std::ptr::null(), 0);
        // SAFETY: the key has the map's size (checked in `new`) and outlives the call.
        match unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// One batch system call over parallel slices. Returns how many elements were done, and the
    /// error at which the kernel stopped, if it did.
    fn batch(&self, command: bpf_cmd, keys: &[K], values: Option<&[V]>) -> (usize, Option<io::Error>) {
        let mut attr = zeroed_attr();
        attr.batch.map_fd = fd_number(&self.fd);
        attr.batch.keys = address(keys.as_ptr());
        attr.batch.values = values.map_or(0, |v| address(v.as_ptr()));
        attr.batch.count = keys.len() as u32;
        // SAFETY: `count` keys, and as many values if any, of the map's sizes; the kernel only
        // reads them for the two commands that get here (update, delete).
        let result = unsafe { bpf(command, &mut attr) };
        // SAFETY: the kernel leaves the number of processed elements in this field; plain integers.
        (unsafe { attr.batch.count } as usize, result.err())
    }

    /// Creates or replaces many elements, in as few system calls as the kernel's limits allow. An
    /// element that does not fit does not keep the others out.
    ///
    /// # Errors
    ///
    /// Those of `BPF_MAP_UPDATE_BATCH` other than a refusal of a single element.
    ///
    /// # Panics
    ///
    /// If there are not as many values as keys.
    pub fn update_batch(&self, keys: &[K], values: &[V]) -> io::Result<Written> {
        assert_eq!(keys.len(), values.len());
        let mut written = Written::default();
        let mut at = 0;
        while at < keys.len() {
            let (done, error) = self.batch(bpf_cmd::BPF_MAP_UPDATE_BATCH, &keys[at..], Some(&values[at..]));
            let Some(error) = error else {
                written.done += keys.len() - at;
                break;
            };
            match error.raw_os_error() {
                Some(libc::E2BIG | libc::ENOMEM | libc::EBUSY) if at + done < keys.len() => {
                    written.done += done;
                    written.refused.push(at + done);
                    at += done + 1;
                }
                _ => return Err(error),
            }
        }
        Ok(written)
    }

    /// Deletes many elements and returns how many there were.
    ///
    /// # Errors
    ///
    /// Those of `BPF_MAP_DELETE_BATCH` but `ENOENT`.
    pub fn delete_batch(&self, keys: &[K]) -> io::Result<usize> {
        let (mut deleted, mut at) = (0, 0);
        while at < keys.len() {
            let (done, error) = self.batch(bpf_cmd::BPF_MAP_DELETE_BATCH, &keys[at..], None);
            match error {
                None => return Ok(deleted + keys.len() - at),
                Some(e) if e.raw_os_error() == Some(libc::ENOENT) && at + done < keys.len() => {
                    deleted += done;
                    at += done + 1;
                }
                Some(e) => return Err(e),
            }
        }
        Ok(deleted)
    }
}

/// An incremental walk over a map, a chunk of elements a call.
///
/// A hash map is walked bucket by bucket, so an element that is there from start to end is seen
/// exactly once whatever is inserted or deleted meanwhile; one that comes or goes may be seen or not.
#[derive(Debug)]
pub struct Walk<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
    /// Where the kernel goes on: an opaque token, `None` before the first call.
    token: Option<u32>,
    ended: bool,
}

impl<K: Pod, V: Pod> Walk<K, V> {
    /// A walk from the beginning that yields up to `chunk` elements a call (more only if one hash
    /// bucket holds more).
    pub fn new(chunk: usize) -> Self {
        let chunk = chunk.max(1);
        Self { keys: vec![zeroed(); chunk], values: vec![zeroed(); chunk], token: None, ended: false }
    }

    /// The next elements; `None` after the last. Fewer than a chunk, or none, is not yet the end.
    ///
    /// # Errors
    ///
    /// Those of `BPF_MAP_LOOKUP_BATCH`.
    pub fn next_chunk(&mut self, map: &Map<K, V>) -> io::Result<Option<(&[K], &[V])>> {
        if self.ended {
            return Ok(None);
        }
        loop {
            let mut token = self.token.unwrap_or_default();
            let mut next = 0u32;
            let mut attr = zeroed_attr();
            attr.batch.map_fd = fd_number(&map.fd);
            attr.batch.in_batch = if self.token.is_some() { address(&raw mut token) } else { 0 };
            attr.batch.out_batch = address(&raw mut next);
            attr.batch.keys = address(self.keys.as_mut_ptr());
            attr.batch.values = address(self.values.as_mut_ptr());
            attr.batch.count = self.keys.len() as u32;
            // SAFETY: `count` keys and values of the map's sizes (checked in `Map::new`); tokens are
            // of four bytes for hash maps and arrays (kernel/bpf/hashtab.c, syscall.c).
            let result = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) };
            match result {
                Ok(_) => self.token = Some(next),
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => self.ended = true,
                // The next bucket alone has more elements than the buffers hold.
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {
                    let room = self.keys.len() * 2;
                    self.keys.resize(room, zeroed());
                    self.values.resize(room, zeroed());
                    continue;
                }
                Err(e) => return Err(e),
            }
            // SAFETY: the kernel leaves the number of elements in this field; plain integers.
            let count = unsafe { attr.batch.count } as usize;
            return Ok(Some((&self.keys[..count], &self.values[..count])));
        }
    }
}

/// A per-CPU array of counters.
#[derive(Debug)]
pub struct PerCpuCounters {
    fd: OwnedFd,
    len: usize,
    /// Counters in an element.
    width: usize,
    cpus: usize,
}

impl PerCpuCounters {
    /// A handle of its own on a per-CPU array whose elements are u64s, one or several.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the map is something else; errors of the system.
    pub fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        let shape = map_shape(map)?;
        if shape.map_type != MapType::BPF_MAP_TYPE_PERCPU_ARRAY as u32
            || shape.value_size == 0
            || !shape.value_size.is_multiple_of(8)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a per-CPU array of 64-bit counters",
            ));
        }
        let cpus = aya::util::nr_cpus().map_err(|(_, e)| e)?;
        let (len, width) = (shape.max_entries as usize, shape.value_size as usize / 8);
        Ok(Self { fd: map.try_clone_to_owned()?, len, width, cpus })
    }

    /// Sets the counters of an element to zero, on every CPU.
    ///
    /// # Errors
    ///
    /// Those of `BPF_MAP_UPDATE_ELEM`; `E2BIG` if there is no such element.
    pub fn reset(&self, element: u32) -> io::Result<()> {
        let zeros = vec![0u64; self.width * self.cpus];
        let mut attr = zeroed_attr();
        attr.__bindgen_anon_2.map_fd = fd_number(&self.fd);
        attr.__bindgen_anon_2.key = address(&raw const element);
        attr.__bindgen_anon_2.__bindgen_anon_1.value = address(zeros.as_ptr());
        // SAFETY: the kernel reads a key of 4 bytes and a value of `width` u64s for each possible CPU.
        unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop) }
    }

    /// All counters, element after element, each summed over the CPUs.
    ///
    /// # Errors
    ///
    /// Those of `BPF_MAP_LOOKUP_BATCH`.
    pub fn sums(&self) -> io::Result<Vec<u64>> {
        let mut keys = vec![0u32; self.len];
        let mut values = vec![0u64; self.len * self.cpus * self.width];
        let mut token = 0u32;
        let mut attr = zeroed_attr();
        attr.batch.map_fd = fd_number(&self.fd);
        attr.batch.out_batch = address(&raw mut token);
        attr.batch.keys = address(keys.as_mut_ptr());
        attr.batch.values = address(values.as_mut_ptr());
        attr.batch.count = self.len as u32;
        // SAFETY: the kernel writes at most `count` keys of 4 bytes and `count` values of `width` u64s for
        // each possible CPU, which is what the buffers hold (shape checked in `new`).
        match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(_) => {}
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => return Err(e),
        }
        let sum = |of_cpus: &[u64], n: usize| {
            of_cpus.iter().skip(n).step_by(self.width).fold(0u64, |sum, counter| sum.wrapping_add(*counter))
        };
        let elements = values.chunks_exact(self.cpus * self.width);
        Ok(elements.flat_map(|of_cpus| (0..self.width).map(move |n| sum(of_cpus, n))).collect())
    }
}

/// A program attached to an interface, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// Id of the link.
    pub id: u32,
    /// Id of the program.
    pub program: u32,
    /// The interface; 0 if it is gone.
    pub ifindex: u32,
}

/// Asks the kernel about an XDP or TCX link.
///
/// # Errors
///
/// `InvalidInput` for any other kind of link; errors of the system.
pub fn link_state(link: BorrowedFd<'_>) -> io::Result<LinkState> {
    // SAFETY: plain integers, for which zero is valid.
    let mut info: bpf_link_info = unsafe { mem::zeroed() };
    let mut attr = zeroed_attr();
    attr.info.bpf_fd = fd_number(link);
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = address(&raw mut info);
    // SAFETY: `info` is of the announced length and outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)? };
    let ifindex = if info.type_ == LinkType::BPF_LINK_TYPE_XDP as u32 {
        // SAFETY: this member is the one in use for this type; plain integers.
        unsafe { info.__bindgen_anon_1.xdp.ifindex }
    } else if info.type_ == LinkType::BPF_LINK_TYPE_TCX as u32 {
        // SAFETY: as above.
        unsafe { info.__bindgen_anon_1.tcx.ifindex }
    } else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither an XDP nor a TCX link"));
    };
    Ok(LinkState { id: info.id, program: info.prog_id, ifindex })
}

fn link_create(program: BorrowedFd<'_>, ifindex: u32, kind: AttachType, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    attr.link_create.__bindgen_anon_1.prog_fd = fd_number(program);
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = kind as u32;
    attr.link_create.flags = flags;
    // SAFETY: no addresses in the attribute.
    unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr).map(owned_fd) }
}

/// Attaches an XDP program in native mode. It stays while the link is open or pinned.
///
/// # Errors
///
/// `EOPNOTSUPP` if the driver has no native XDP, `EBUSY` or `EEXIST` if another program is there.
pub fn attach_xdp(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    link_create(program, ifindex, AttachType::BPF_XDP, XDP_FLAGS_DRV_MODE)
}

/// Attaches a tc program by TCX (Linux 6.6), before all others on that hook: a verdict of a program
/// in front of it would be a way around the filter.
///
/// # Errors
///
/// `EINVAL` on an older kernel; others of `BPF_LINK_CREATE`.
pub fn attach_tcx(program: BorrowedFd<'_>, ifindex: u32, kind: AttachType) -> io::Result<OwnedFd> {
    link_create(program, ifindex, kind, BPF_F_BEFORE)
}

/// Puts another program into a link; no packet sees neither or both.
///
/// # Errors
///
/// `ENOLINK` if the interface is gone; others of `BPF_LINK_UPDATE`.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed_attr();
    attr.link_update.link_fd = fd_number(link);
    attr.link_update.__bindgen_anon_1.new_prog_fd = fd_number(program);
    // SAFETY: no addresses in the attribute.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop) }
}

/// Takes a link's program off its interface, at once and whoever else holds the link open (a child
/// process between fork and exec does).
///
/// # Errors
///
/// Those of `BPF_LINK_DETACH` (Linux 5.9).
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed_attr();
    attr.link_detach.link_fd = fd_number(link);
    // SAFETY: no addresses in the attribute.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop) }
}

/// Ids of the links on a TCX hook of an interface of this network namespace.
///
/// # Errors
///
/// Those of `BPF_PROG_QUERY`.
pub fn tcx_links(ifindex: u32, kind: AttachType) -> io::Result<Vec<u32>> {
    // BPF_MPROG_MAX: the kernel takes no more programs on a hook.
    const MAX: usize = 64;
    let (mut programs, mut links) = ([0u32; MAX], [0u32; MAX]);
    let mut attr = zeroed_attr();
    attr.query.__bindgen_anon_1.target_ifindex = ifindex;
    attr.query.attach_type = kind as u32;
    attr.query.prog_ids = address(programs.as_mut_ptr());
    attr.query.link_ids = address(links.as_mut_ptr());
    attr.query.__bindgen_anon_2.count = MAX as u32;
    // SAFETY: room for `count` ids in both arrays, which outlive the call.
    match unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) } {
        Ok(_) => {}
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    }
    // SAFETY: the kernel leaves the number of programs in this field; plain integers.
    let count = unsafe { attr.query.__bindgen_anon_2.count } as usize;
    Ok(links[..count.min(MAX)].iter().copied().filter(|id| *id != 0).collect())
}

/// The elements of an array map of u64 (`BPF_F_MMAPABLE`) in this process's memory, which programs may change at any time.
#[derive(Debug)]
pub struct Words {
    at: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: what it points to belongs to it until it is dropped, and is atomics, which any thread may use.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Maps a map.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the map's elements have another size; those of `mmap`.
    pub fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        let shape = map_shape(map)?;
        let word = size_of::<AtomicU64>();
        if shape.value_size as usize != word {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = shape.max_entries as usize;
        // SAFETY: a new mapping, of no less than the map has; the kernel rounds it up to pages, as it does the map.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len * word,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(at.cast::<AtomicU64>()) {
            Some(words) if at != libc::MAP_FAILED => Ok(Self { at: words, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: as many words are mapped, at the beginning of a page, until `self` is dropped.
        unsafe { slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, to which nothing refers any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len * size_of::<AtomicU64>()) };
    }
}

/// Runs a tc program with a frame that came in by an interface of this network namespace. The frame goes nowhere, whatever
/// the program says; what it does to maps is done. Returns what it returns.
///
/// # Errors
///
/// Those of `BPF_PROG_TEST_RUN`: `EINVAL` for a frame without an Ethernet header, `ENODEV` if there is no such interface.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8], ifindex: u32) -> io::Result<u32> {
    // `struct __sk_buff` up to its member `ifindex`, which is behind `ingress_ifindex`. What is not given is zero.
    let mut context = [0u32; 11];
    (context[9], context[10]) = (ifindex, ifindex);
    let mut attr = zeroed_attr();
    attr.test.prog_fd = fd_number(program);
    attr.test.data_in = address(frame.as_ptr());
    attr.test.data_size_in = frame.len() as u32;
    attr.test.ctx_in = address(context.as_ptr());
    attr.test.ctx_size_in = size_of_val(&context) as u32;
    attr.test.repeat = 1;
    // SAFETY: the kernel reads a frame and a context of the given sizes, and writes neither: there is no room for either.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)? };
    // SAFETY: the kernel leaves the program's answer in this field; plain integers.
    Ok(unsafe { attr.test.retval })
}

/// Pins a map, program or link to a path on a bpffs.
///
/// # Errors
///
/// `EEXIST` if there is something; `EPERM` for a name with a dot; others of `BPF_OBJ_PIN`.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_4.pathname = address(path.as_ptr());
    attr.__bindgen_anon_4.bpf_fd = fd_number(object);
    // SAFETY: the path ends in a NUL and outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop) }
}

/// Opens what is pinned at a path.
///
/// # Errors
///
/// `ENOENT` if nothing is; others of `BPF_OBJ_GET`.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = path_string(path)?;
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_4.pathname = address(path.as_ptr());
    // SAFETY: the path ends in a NUL and outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr).map(owned_fd) }
}
