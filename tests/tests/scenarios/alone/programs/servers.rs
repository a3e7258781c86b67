//! Small servers for real clients. Each serves on a thread of its own until the process ends or its socket fails.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;

use anyhow::Result;
use fwha_tests::lab::{Host, Lab};

/// The address that [`dns`] gives for every name (RFC 5737).
pub const ANSWER: [u8; 4] = [192, 0, 2, 53];

/// A listener of both families.
fn listen(lab: &Lab, host: Host, port: u16) -> Result<TcpListener> {
    Ok(lab.within(host, || TcpListener::bind(("::", port)))??)
}

/// Serves each connection to a port with `one`.
fn each(
    lab: &Lab,
    host: Host,
    port: u16,
    one: impl Fn(TcpStream) -> std::io::Result<()> + Send + 'static,
) -> Result<()> {
    let listener = listen(lab, host, port)?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The client sees what went wrong.
            let _ = one(stream);
        }
    });
    Ok(())
}

/// HTTP/1.0 at a port: every path is this file.
pub fn http(lab: &Lab, host: Host, port: u16, file: Vec<u8>) -> Result<()> {
    let file = Arc::new(file);
    each(lab, host, port, move |mut stream| {
        for line in BufReader::new(&stream).lines() {
            if line?.is_empty() {
                break;
            }
        }
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", file.len())?;
        stream.write_all(&file)
    })
}

/// Takes whatever comes to a port and answers with its length in decimal digits.
pub fn sink(lab: &Lab, host: Host, port: u16) -> Result<()> {
    each(lab, host, port, |mut stream| {
        let length = std::io::copy(&mut stream, &mut std::io::sink())?;
        write!(stream, "{length}")
    })
}

/// Greets whoever comes to a port.
pub fn greeter(lab: &Lab, host: Host, port: u16, greeting: &'static str) -> Result<()> {
    each(lab, host, port, move |mut stream| stream.write_all(greeting.as_bytes()))
}

/// DNS at port 53, UDP and TCP (RFC 1035): every name has the address [`ANSWER`].
pub fn dns(lab: &Lab, host: Host) -> Result<()> {
    let socket = lab.within(host, || UdpSocket::bind(("::", 53)))??;
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            let _ = socket.send_to(&answer(&query[..length]), from);
        }
    });
    each(lab, host, 53, |mut stream| {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut query = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut query)?;
        let answer = answer(&query);
        stream.write_all(&(answer.len() as u16).to_be_bytes())?;
        stream.write_all(&answer)
    })
}

/// The answer to a query with one question.
fn answer(query: &[u8]) -> Vec<u8> {
    const HEADER: usize = 12;
    let name = query.get(HEADER..).and_then(|question| question.iter().position(|&byte| byte == 0));
    let Some(question) = name.and_then(|end| query.get(HEADER..HEADER + end + 5)) else { return Vec::new() };
    let mut answer = query[..2].to_vec();
    // A response, recursion available; one question, one answer.
    answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend(question);
    // The question's name, A, IN, 60 s, four bytes.
    answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend(ANSWER);
    answer
}
