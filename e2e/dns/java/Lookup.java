import java.net.InetAddress;
import java.net.UnknownHostException;

/** Prints the addresses of a name, by the resolver of Java, and how long that took. */
class Lookup {
	public static void main(String[] args) {
		long begin = System.nanoTime();
		InetAddress[] found = {};
		try {
			found = InetAddress.getAllByName(args[0]);
		} catch (UnknownHostException e) {
			System.err.println(e);
		}
		System.out.println("took " + (System.nanoTime() - begin) / 1_000_000 + " ms");
		for (InetAddress address : found) {
			System.out.println(address.getHostAddress());
		}
		System.exit(found.length > 0 ? 0 : 2);
	}
}
